"""The programs that measure engine=nemo on a GPU, rehearsed."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from megatron_ranks import HAS_NEMO
from small_runs import SAMPLES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_NEMO, reason="nemo_toolkit is not installed"),
]
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def rehearse(program: str, folder: Path, *arguments: str) -> list[str]:
    """Run a program on the CPU and return the lines that it printed."""
    command = [sys.executable, str(BENCHMARKS / program), "--cpu", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=270, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout.splitlines()


def test_steps_of_every_case_are_in_the_table(tmp_path: Path) -> None:
    clip = ("model=tiny", "data.frames=9", "data.height=64", "data.width=96")
    lines = rehearse("nemo_step.py", tmp_path, "--out=found.json", "--steps=2", *clip)
    rows = json.loads((tmp_path / "found.json").read_text())
    assert [row["case"] for row in rows] == ["nemo", "torch", "nemo-flash", "torch-save-attention"]
    assert all(len(row["steps_s"]) == 2 for row in rows)
    assert lines[-3].startswith("| torch |")


def test_curves_of_both_engines_lie_on_each_other(small_samples: Path, tmp_path: Path) -> None:
    clip = ("data.frames=9", "data.height=48", "data.width=64")
    model = ("model=tiny", "model.num_layers=2", "model.text_tokens=16")
    samples = f"--samples={small_samples / SAMPLES}"
    lines = rehearse(
        "nemo_curves.py", tmp_path, samples, "--steps=4", "--out=curves", *model, *clip
    )
    found = json.loads(lines[-1])
    assert found["nemo bf16 loss"] < 2 * found["torch bf16 loss"] + 1e-3
    with (tmp_path / "curves" / "curves.csv").open() as file:
        assert len(list(csv.reader(file))) == 5
    assert (tmp_path / "curves" / "curves.png").stat().st_size > 10_000


def test_errors_of_a_network_in_float32_are_rounding(tmp_path: Path) -> None:
    clip = ("model=tiny", "data.height=64", "data.width=96")
    lines = rehearse("nemo_precision.py", tmp_path, "--layers=2", "--frames=9", *clip)
    row = json.loads(lines[-1])
    assert row["engine"] == "nemo"
    assert max(row["prediction"], row["loss"], row["gradient"]) < 1e-5
