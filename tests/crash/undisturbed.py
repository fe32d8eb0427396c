"""What each stage's command leaves when nothing happens to it; made once, for all tests here."""

import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from conftest import REPORTED, SMALL
from forked import Ended, run
from small_runs import SAMPLES
from traces import traces

from cosmos_hydra import runs
from cosmos_hydra.engines.torch import checkpoint

RUN = "runs/tiny-synthetic"
TRAIN = (
    *("stage=post_train", *REPORTED, "trainer.max_steps=8"),
    *("trainer.validate_every=4", "trainer.preview_every=4"),
)


@dataclass(frozen=True)
class Stage:
    """A command, and the stage that comes before it."""

    typed: tuple[str, ...]
    before: str | None = None


STAGES = {
    "preprocess": Stage(("stage=preprocess", *SMALL)),
    "nemo": Stage(("stage=preprocess", *SMALL, "data.format=nemo", "model.text_tokens=512")),
    "post_train": Stage((*TRAIN, "trainer.save_every=1", "log.report=false"), "preprocess"),
    "rarely_saved": Stage((*TRAIN, "trainer.save_every=4", "log.report=false"), "preprocess"),
    "reported": Stage((*TRAIN, "trainer.save_every=4"), "preprocess"),
    "generate": Stage(
        (
            *("stage=generate", f"checkpoint={RUN}", "generate.videos_per_prompt=4"),
            *("generate.steps=2", "generate.max_captions=1", "log.report=false"),
        ),
        "post_train",
    ),
}


def finish(*typed: str, cwd: Path) -> Ended:
    """Run a command and check that it comes to its end without a word on stderr."""
    ended = run(*typed, cwd=cwd)
    assert (ended.code, ended.stderr) == (0, "")
    return ended


@cache
def _all() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="undisturbed-")


@cache
def _made(name: str) -> tuple[Path, float]:
    stage, folder = STAGES[name], Path(_all().name) / name
    begin(name, folder)
    return folder, finish(*stage.typed, cwd=folder).wall_s


def begin(name: str, folder: Path) -> tuple[str, ...]:
    """Make a folder for a stage's command, those before it done, and return the command."""
    stage = STAGES[name]
    if stage.before:
        shutil.copytree(_made(stage.before)[0], folder)
    else:
        folder.mkdir(parents=True)
    return stage.typed


@cache
def whole(name: str) -> dict[str, bytes]:
    """Return what is left of a stage and those before it."""
    return traces(_made(name)[0])


def wall_s(name: str) -> float:
    """Return how long a stage takes here."""
    return _made(name)[1]


def check_what_counts(cwd: Path, stage: str) -> None:
    """Where the file that is written last is there, all are, byte for byte; checkpoints open."""
    counting = []
    for info in (cwd / SAMPLES).glob("[!.]*.info.json"):
        sample_id = info.name.partition(".")[0]
        counting += [info, *info.parent.glob(f"{sample_id}.video_latent.*")]
    for sidecar in (cwd / RUN / "videos").glob("[!.]*.json"):
        counting += [sidecar, sidecar.with_suffix(".mp4")]
    names = {path.relative_to(cwd).as_posix(): path for path in counting}
    assert [n for n, path in names.items() if path.read_bytes() != whole(stage)[n]] == []
    # the newest that counts is intact: nothing falls back to one before
    newest = checkpoint.newest(cwd / RUN)
    assert [newest.step if newest else None] == (runs.steps(cwd / RUN) or [None])[-1:]
