"""Shared fixtures: the command line called in-process, and one small prepared data set.

Tests on real videos read their folder from COSMOS_HYDRA_TEST_DATA and skip without it.
"""

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from cosmos_hydra.main import main

# tiny tensors gain nothing from threads, and two cores lose by them
os.environ.setdefault("OMP_NUM_THREADS", "1")

SLURM = "slurm"
# a pipeline of seconds: 6 rendered videos of 17 frames, clips of 9 frames, latents 2x6x8
REPORTED = (
    "data.synthetic.num_videos=6",
    "data.synthetic.frames=17",
    "data.synthetic.height=48",
    "data.synthetic.width=64",
    "data.height=48",
    "data.width=64",
    "data.frames=9",
    "data.chunks_per_video=2",
    "model.num_layers=2",
    "model.text_tokens=16",
    "trainer.max_steps=4",
    "trainer.global_batch_size=2",
    "trainer.micro_batch_size=2",
    "trainer.save_every=2",
    "trainer.validate_every=2",
    "trainer.validation_samples=2",
    "trainer.validation_sigmas=2",
    "trainer.preview_every=0",
    "trainer.preview_steps=2",
    "generate.steps=2",
    "generate.max_captions=1",
)
# without the report, whose plots take a third of the time
SMALL = (*REPORTED, "log.report=false")


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code and what it printed."""

    code: int
    stdout: str
    stderr: str


Command = Callable[..., Outcome]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests on Slurm, which mostly wait."""
    items.sort(key=lambda item: item.path.parent.name != SLURM)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Give each file to one process, and all files on Slurm, which share a cluster, to one."""

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return SLURM if f"/{SLURM}/" in nodeid else super()._split_scope(nodeid)

    return ByFile(config, log)


@pytest.fixture(scope="module", autouse=True)
def collect_cheaply() -> Iterator[None]:
    """Exempt what a module leaves in memory, imports above all, from all later collections.

    Stages collect at their end, which here takes ten times as long as in a process of their own.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run `cosmos-hydra` in this process, as typed in a shell, in the folder `cwd`."""

    def run(*arguments: str, cwd: Path) -> Outcome:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["cosmos-hydra", *arguments])
        capfd.readouterr()
        code, level = 0, logging.root.level
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        finally:
            logging.root.setLevel(level)  # hydra.verbose would have Hydra compose five times
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def small_samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which `stage=preprocess` with SMALL has run; do not write into it."""
    folder = tmp_path_factory.mktemp("small")
    before = Path.cwd(), sys.argv
    os.chdir(folder)
    sys.argv = ["cosmos-hydra", "stage=preprocess", *SMALL]
    try:
        main()
    finally:
        os.chdir(before[0])
        sys.argv = before[1]
    return folder


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """Return the folder of real robot videos, or skip."""
    folder = os.environ.get("COSMOS_HYDRA_TEST_DATA")
    if not folder:
        pytest.skip("COSMOS_HYDRA_TEST_DATA is not set")
    return Path(folder)
