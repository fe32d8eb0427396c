"""The benchmark of preprocessing runs through, with tiny models."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from raw_videos import write_moving_video

PROGRAM = Path(__file__).parents[2] / "benchmarks/preprocess.py"


def test_the_rehearsal_prints_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        write_moving_video(tmp_path / f"{number}.mp4", seed=number)
    fast = "channels_last+flat+matmul+patches"
    typed = ["--videos", tmp_path, "--clips", 4, "--old-clips", 2, "--workers", 1, "--repeats", 1]
    chosen = ["--variants", "eager", fast, "--ours", fast, "--tiny", "--out", tmp_path]
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), *map(str, typed), *map(str, chosen)])
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    runpy.run_path(str(PROGRAM), run_name="__main__")
    printed = capsys.readouterr().out
    assert re.search(r"old script: 2 clips in .* clips/s", printed)
    assert re.search(rf"ours, {re.escape(fast)}: 4 clips in .* clips/s", printed)
    assert re.search(r"x the old script with those", printed)
    assert "largest difference to the CPU" in printed
