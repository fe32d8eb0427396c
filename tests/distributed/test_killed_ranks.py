"""A rank of a torchrun job is killed: the job ends, what is on disk is whole, and it goes on."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from conftest import SMALL
from distributed_cases import train
from ranks import run
from small_runs import SAMPLES, assert_same_tensors, rows_of, state_of

from cosmos_hydra import runs
from cosmos_hydra.engines.torch import checkpoint

SETTINGS = (
    *("trainer.save_every=4", "trainer.keep=0", "trainer.validate_every=0"),
    *("log.report=false", "model.num_heads=4", "model.head_dim=24"),
)
MESHES = {
    "ddp": "parallel.dp_replicate=2",
    "fsdp": "parallel.dp_shard=2",
    "cp": "parallel.cp=2",
    "tp": "parallel.tp=2",
}
LIMIT_S = 30.0


@dataclass(frozen=True)
class Case:
    """A job of two ranks on samples, below a folder."""

    samples: Path
    folder: Path
    mesh: str
    steps: int

    @property
    def settings(self) -> tuple[str, ...]:
        return (*SETTINGS, MESHES[self.mesh], f"trainer.max_steps={self.steps}")

    @property
    def run(self) -> Path:
        return self.folder / "runs/one"

    def output(self) -> str:
        """Return what the job has printed."""
        return (self.folder / "output").read_text()

    @cached_property
    def undisturbed(self) -> Path:
        """Return a run that nothing happens to."""
        whole = self.folder / "whole"
        run(2, train, self.samples, self.settings, whole)
        return whole


@contextmanager
def job(case: Case) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a job with torchrun, as users do."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    typed = ("stage=post_train", *SMALL, *case.settings, "name=one")
    data = f"data.path={case.samples / SAMPLES}"
    with (case.folder / "output").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *torchrun, "-m", "cosmos_hydra", *typed, data],
            cwd=case.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
        )
        try:
            yield process
        finally:
            for pid in processes_in(case.folder):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def processes_in(folder: Path) -> list[int]:
    """Return the processes whose working directory is a folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):  # it has ended, or is another user's
            if place.readlink() == folder:
                found.append(int(place.parent.name))
    return found


def pid_of(rank: int, folder: Path) -> int:
    """Return the process of a rank."""
    wanted = f"RANK={rank}".encode()
    (found,) = (
        pid
        for pid in processes_in(folder)
        if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    )
    return found


def kill(case: Case, rank: int, later_s: float) -> int:
    """Kill a rank so long after the first checkpoint and check how the job ends.

    Return the step that is on disk then.
    """
    with job(case) as process:
        while not runs.steps(case.run):
            assert process.poll() is None, case.output()
            time.sleep(0.01)
        time.sleep(later_s)
        os.kill(pid_of(rank, case.folder), signal.SIGKILL)
        killed_s = time.monotonic()
        code = process.wait(2 * LIMIT_S)
        took_s = time.monotonic() - killed_s
        print(f"{case.mesh}: the job ended {took_s:.1f} s after rank {rank}")  # noqa: T201
        assert took_s < LIMIT_S
        assert code != 0
        assert processes_in(case.folder) == []
    found = checkpoint.newest(case.run)
    assert found is not None
    assert found.step == runs.steps(case.run)[-1] < case.steps
    return found.step


def assert_undisturbed(case: Case) -> None:
    """Compare the last checkpoint, bitwise, and all rows."""
    whole = state_of(case.undisturbed, case.steps)
    assert_same_tensors(state_of(case.run, case.steps), whole)
    assert rows_of(case.run) == rows_of(case.undisturbed)


def test_a_job_whose_rank_is_killed_ends_and_goes_on_to_the_same_end(
    small_samples: Path, tmp_path: Path
) -> None:
    case = Case(small_samples, tmp_path, "fsdp", steps=12)
    kill(case, rank=1, later_s=0.0)
    run(2, train, case.samples, case.settings, case.run)
    assert_undisturbed(case)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("mesh", MESHES)
def test_ranks_killed_at_random_times(
    small_samples: Path, tmp_path: Path, mesh: str, rank: int
) -> None:
    case = Case(small_samples, tmp_path, mesh, steps=60)
    times = random.Random(f"{mesh} {rank}")
    for _ in range(3):
        step = kill(case, rank, times.uniform(0, 1.5))
        with job(case) as process:
            assert process.wait(4 * LIMIT_S) == 0, case.output()
        assert f"resuming step {step}/{case.steps} of" in case.output()
        assert_undisturbed(case)
        shutil.rmtree(case.run)
