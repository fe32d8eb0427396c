"""The benchmark of a video runs through on small shapes."""

import json
import runpy
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks/generate_video.py"
SMALL = ("model=tiny", "model.num_layers=2", "data.frames=9", "data.height=64", "data.width=64")


def test_the_rehearsal_measures_both_cases_and_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    out = tmp_path / "video.jsonl"
    typed = ["--tiny", "--steps", "3", "--apart-steps", "2", "--matmul-size", "64"]
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), *typed, "--out", str(out), *SMALL])
    runpy.run_path(str(PROGRAM), run_name="__main__")
    apart, batched = map(json.loads, out.read_text().splitlines())
    assert (apart["case"], batched["case"]) == ("apart", "batched")
    for row in (apart, batched):
        assert 0 < row["step_s"] < row["denoise_s"]
    assert batched["decode_s"] > 0
    # RES-2ab denoises once more at its end
    printed = capsys.readouterr().out
    assert "apart step 3: " in printed
    assert "batched step 4: " in printed
