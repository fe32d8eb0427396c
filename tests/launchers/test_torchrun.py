"""launch=torchrun: real ranks of the real command, and the sentences that refuse or explain."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL, Command
from small_runs import SAMPLES, rows_of

from cosmos_hydra import runs

TWO = ("launch=torchrun", "hydra.launcher.nproc_per_node=2", "parallel=fsdp")
RUN = "runs/tiny-synthetic"


def typed(samples: Path, *others: str) -> tuple[str, ...]:
    return ("stage=post_train", *SMALL, f"data.path={samples / SAMPLES}", *others)


def test_two_ranks_train_in_the_run_directory_and_one_process_goes_on(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    first = command(*typed(small_samples, *TWO, "log.report=false"), cwd=tmp_path)
    assert (first.code, first.stderr) == (0, "")
    assert "on 2 cpu ranks (dp_shard 2)" in first.stdout
    assert "next: cosmos-hydra stage=generate checkpoint=runs/tiny-synthetic" in first.stdout
    assert runs.steps(tmp_path / RUN) == [2, 4]
    found = {path.name for path in (tmp_path / RUN).iterdir()}
    assert found == {
        *(".hydra", "checkpoints", "logs", "losses.jsonl", "metrics.jsonl", "overview.png"),
        *("run.json", "run.log"),
    }
    logs = tmp_path / RUN / "logs"
    assert {path.name for path in logs.iterdir()} == {
        *("node_00.log", "rank_00.log", "rank_01.log"),
    }
    assert (logs / "rank_01.log").read_text() == ""
    config = (*typed(small_samples, "log.report=false"), "trainer.max_steps=6")
    second = command(*config, cwd=tmp_path)
    assert "resuming step 4/6 of runs/tiny-synthetic" in second.stdout
    assert [row["step"] for row in rows_of(tmp_path / RUN) if "loss" in row] == list(range(1, 7))


def test_hydra_run_dir_is_heeded(command: Command, small_samples: Path, tmp_path: Path) -> None:
    shown = command(
        *typed(small_samples, *TWO, "hydra.run.dir=here", "launch.dry_run=true"), cwd=tmp_path
    )
    assert shown.code == 0
    assert shown.stdout.startswith(f"{sys.executable} -m torch.distributed.run --standalone")
    assert shown.stdout.endswith(f" hydra.run.dir={tmp_path / 'here'}\n")
    assert " -m cosmos_hydra stage=post_train " in shown.stdout


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("optim.lr=1,2", "optim.lr=1,2 holds several values; add -m to run a job for each"),
        (
            "hydra.launcher.nproc_per_node=none",
            "hydra.launcher.nproc_per_node=none is no number of ranks; auto, or at least 1",
        ),
    ],
)
def test_what_cannot_be_launched_is_refused(
    command: Command, tmp_path: Path, wrong: str, said: str
) -> None:
    refused = command("stage=post_train", *TWO, wrong, cwd=tmp_path)
    assert (refused.code, refused.stderr) == (2, f"cosmos-hydra: {said}\n")
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("*.*"))


def test_ranks_do_not_start_ranks(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = command("stage=post_train", *TWO, cwd=tmp_path)
    assert refused.code == 2
    assert refused.stderr == (
        "cosmos-hydra: each of 2 ranks would start jobs of its own; leave torchrun or srun out, or "
        "launch= and -m\n"
    )


def test_a_dry_run_needs_a_launcher(command: Command, tmp_path: Path) -> None:
    refused = command("stage=post_train", "launch.dry_run=true", cwd=tmp_path)
    assert refused.code == 2
    assert refused.stderr == (
        "cosmos-hydra: launch.dry_run=true has nothing to show with launch=local, which starts no "
        "other process; use launch=torchrun or launch=slurm\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted; the same command goes on from here"),
        pytest.param(*(signal.SIGTERM, 75, r"stopped by a signal at step"), marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_on_all_ranks_and_leaves_no_process(
    small_samples: Path, tmp_path: Path, number: int, code: int, said: str
) -> None:
    arguments = typed(small_samples, *TWO, "trainer.max_steps=2000", "log.report=false")
    process = subprocess.Popen(
        [sys.executable, "-m", "cosmos_hydra", *arguments],
        cwd=tmp_path,
        env={**os.environ, "MARK": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not runs.steps(tmp_path / RUN):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == code
    assert said in stderr
    assert len(stderr.splitlines()) == 1
    last = runs.steps(tmp_path / RUN)[-1]
    manifest = runs.step_folder(tmp_path / RUN, last) / runs.MANIFEST
    assert json.loads(manifest.read_text())["step"] == last
    assert marked(tmp_path) == []


def marked(folder: Path) -> list[str]:
    """Return the processes of a test that still run."""
    mark = f"MARK={folder}".encode()
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in environ.read_bytes().split(b"\0"):
                found.append(environ.parent.name)
        except OSError:
            continue
    return found
