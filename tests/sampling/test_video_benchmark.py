"""The benchmark of a whole video runs through on small shapes."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cosmos_hydra.data.video import decode

PROGRAM = Path(__file__).parents[2] / "benchmarks/generate_full_size.py"
SMALL = ("model=tiny", "model.num_layers=1", "data.frames=9", "data.height=48", "data.width=64")
Program = Callable[..., dict[str, Any]]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Program:
    """Run the benchmark as typed in a shell."""
    monkeypatch.syspath_prepend(str(PROGRAM.parent))

    def run(*typed: str, name: str = "__main__") -> dict[str, Any]:
        more = [part for key in SMALL for part in ("--set", key)]
        places = ["--folder", str(tmp_path / "work"), "--out", str(tmp_path / "videos.jsonl")]
        monkeypatch.setattr(sys, "argv", [str(PROGRAM), *typed, *more, *places])
        return runpy.run_path(str(PROGRAM), run_name=name)

    return run


def test_the_rehearsal_writes_a_video_and_a_row_for_each_case(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ("--branches", "batched,sequential", "--steps", "3", "--steps-of-others", "2")
    program(*typed, "--matmul-size", "64")
    lines = (tmp_path / "videos.jsonl").read_text().splitlines()
    batched, sequential = map(json.loads, lines)
    assert (batched["case"], batched["evaluations"], batched["frames"]) == ("batched", 4, 9)
    assert (sequential["case"], sequential["evaluations"]) == ("sequential", 3)
    assert "decode_s" not in sequential
    for row in (batched, sequential):
        assert 0 < row["step_s"] < row["denoising_s"]
        assert row["passes_a_step"] == 2
        assert row["tflop_per_s"] * row["step_s"] == pytest.approx(row["model_tflop_a_step"])
    assert decode(tmp_path / "work/random.mp4", [8]).shape == (1, 48, 64, 3)
    assert "\nbatched 4: " in capsys.readouterr().out


def test_one_pass_after_the_other_gives_what_one_of_both_gives(program: Program) -> None:
    parts = program(name="parts")
    config = parts["config_of"](Path(), list(SMALL))
    cpu = torch.device("cpu")
    _, one_CFHW = parts["sampled"](config, "batched", 2, cpu)
    _, other_CFHW = parts["sampled"](config, "sequential", 2, cpu)
    torch.testing.assert_close(one_CFHW, other_CFHW, rtol=1e-4, atol=1e-4)


def test_a_case_that_does_not_exist_is_refused(
    program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        program("--branches", "batched,both")
    assert "both: no such case; use some of compiled," in capsys.readouterr().err
