"""Of several ranks the first says what all of them find, and the others wait until it has."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

WRONG = ("stage=post_train", "trainer.max_steps=0")


def start(rank: int, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "cosmos_hydra", *WRONG],
        cwd=folder,
        env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_config_error_is_said_once_and_not_cut_off(tmp_path: Path) -> None:
    other, first = start(1, tmp_path), start(0, tmp_path)
    assert first.communicate(timeout=120) == (
        "",
        "cosmos-hydra: trainer.max_steps=0 is too small; at least 1\n",
    )
    assert first.returncode == 2
    # had it left before, torchrun would have ended the first
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(2)
    other.terminate()
    assert other.communicate(timeout=120) == ("", "")
    assert other.returncode == -signal.SIGTERM
