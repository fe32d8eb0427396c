"""Ctrl-C in each stage: exit 130, what is finished stays, and the same command goes on.

A real SIGINT is raised when one of our functions is called for the n-th time.
"""

import importlib
import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import SMALL, Command, Outcome
from small_runs import SAMPLES, rows_of

from cosmos_hydra import runs

GOES_ON = "cosmos-hydra: interrupted; the same command goes on from here\n"
RUN = "runs/tiny-synthetic"
Press = Callable[..., None]
Training = tuple[Path, tuple[str, ...]]


@pytest.fixture(autouse=True)
def _interrupts_as_in_a_new_process() -> Iterator[None]:
    """Undo what the command does to the handler before its process ends."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def press(monkeypatch: pytest.MonkeyPatch) -> Press:
    """Press Ctrl-C when the function at a dotted place is called for the n-th time."""

    def at(place: str, call: int, times: int = 1) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        module, _, name = place.rpartition(".")
        owner = importlib.import_module(f"cosmos_hydra.{module}")
        real, calls = getattr(owner, name), itertools.count(1)

        def pressed(*arguments: object, **named: object) -> object:
            if next(calls) == call:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, pressed)

    return at


def content(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "hashes.json"  # has the times of the videos
    }


def finish(outcome: Outcome) -> str:
    """Return what a command printed, after checking that nothing went wrong."""
    assert (outcome.code, outcome.stderr) == (0, "")
    return outcome.stdout


@pytest.mark.parametrize(
    ("place", "call", "num_samples"),
    [
        ("data.sources.synthetic.render", 4, 0),  # while rendering
        ("data.prepare.read_clip", 5, 0),  # while fitting the tokenizer, on 10 clips
        ("data.prepare.read_clip", 15, 4),  # while encoding
        ("files.sync", 31, 0),  # between writing a file and renaming it
        ("data.prepare.complete", 1, 12),  # before the manifest
    ],
)
def test_interrupted_preprocessing_goes_on_to_the_same_samples(
    command: Command,
    small_samples: Path,
    tmp_path: Path,
    press: Press,
    place: str,
    call: int,
    num_samples: int,
) -> None:
    typed = ("stage=preprocess", *SMALL)
    press(place, call)
    stopped = command(*typed, cwd=tmp_path)
    assert (stopped.code, stopped.stderr) == (130, GOES_ON)
    assert not (tmp_path / SAMPLES / "manifest.json").exists()
    whole = content(small_samples / "samples")
    finished = sorted((tmp_path / SAMPLES).glob("*.info.json"))
    assert len(finished) == num_samples
    # nothing half-written under a final name, nothing left under a temporary one
    for name, found in content(tmp_path / "samples").items():
        assert name.endswith("plan.json") or found == whole[name]

    times = [path.stat().st_mtime_ns for path in finished]
    printed = finish(command(*typed, cwd=tmp_path))
    assert f"samples: {12 - num_samples} to make, {num_samples} there\n" in printed
    assert [path.stat().st_mtime_ns for path in finished] == times
    assert content(tmp_path / "samples") == whole


@pytest.fixture(scope="module")
def whole_run(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Return a folder to train in, and the command that does it."""
    typed = ("stage=post_train", *SMALL, f"data.path={small_samples / SAMPLES}")
    return tmp_path_factory.mktemp("whole"), typed


@pytest.mark.parametrize(
    ("place", "call", "times", "saved"),
    [
        ("engines.torch.step.learning_rate", 3, 1, [2, 3]),  # the step is finished first
        ("engines.torch.step.learning_rate", 4, 2, [2, 3]),  # twice: at once
        ("engines.torch.trainer.build_transformer", 1, 1, []),  # before training
        ("engines.torch.validation.weighted_error", 1, 1, []),  # before the first step
        ("engines.torch.validation.denoise", 3, 1, [2]),  # in the validation after step 2
        ("engines.torch.state.write", 1, 2, [2]),  # twice, while saving step 2
    ],
)
def test_interrupted_training_goes_on_to_the_same_weights_bitwise(
    command: Command,
    whole_run: Training,
    tmp_path: Path,
    press: Press,
    place: str,
    call: int,
    times: int,
    saved: list[int],
) -> None:
    folder, typed = whole_run
    if not runs.steps(folder / RUN):
        finish(command(*typed, cwd=folder))
    press(place, call, times)
    stopped = command(*typed, cwd=tmp_path)
    assert (stopped.code, stopped.stderr) == (130, GOES_ON)
    # training may be a step further when the thread that saves is interrupted
    found = runs.steps(tmp_path / RUN)
    assert found == saved or (place.endswith("write") and found == [2, 3])
    assert list((tmp_path / RUN).rglob("*.tmp")) == []

    printed = finish(command(*typed, cwd=tmp_path))
    assert (f"resuming step {max(found, default=0)}/4 of {RUN}\n" in printed) == bool(saved)
    last = "checkpoints/step_000004"
    assert content(tmp_path / RUN / last) == content(folder / RUN / last)
    assert rows_of(tmp_path / RUN) == rows_of(folder / RUN)


def test_interrupted_generation_keeps_finished_videos_and_makes_the_rest(
    command: Command, whole_run: Training, tmp_path: Path, press: Press
) -> None:
    folder, typed = whole_run
    if not runs.steps(folder / RUN):
        finish(command(*typed, cwd=folder))
    generate = (
        *("stage=generate", f"checkpoint={folder / RUN}", "generate.steps=2"),
        *("generate.videos_per_prompt=3", "generate.prompt=A robot arm waves."),
    )
    finish(command(*generate, f"generate.out={tmp_path / 'whole'}", cwd=tmp_path))
    whole = content(tmp_path / "whole")
    cut = tmp_path / "cut"
    press("sampling.videos.generate_latent", 2)
    stopped = command(*generate, f"generate.out={cut}", cwd=tmp_path)
    assert (stopped.code, stopped.stderr) == (130, GOES_ON)
    [video] = cut.glob("*_??????.mp4")
    assert [sidecar.stem for sidecar in cut.glob("*_??????.json")] == [video.stem]
    assert video.read_bytes() == whole[video.name]
    time_ns = video.stat().st_mtime_ns

    printed = finish(command(*generate, f"generate.out={cut}", cwd=tmp_path))
    assert "1 of 3 videos are there already\n" in printed
    assert video.stat().st_mtime_ns == time_ns
    pictures = {name: found for name, found in whole.items() if name.endswith((".mp4", ".png"))}
    assert len(pictures) == 7
    assert {name: content(cut)[name] for name in pictures} == pictures


def test_an_interrupted_pipeline_goes_on_in_the_stage_it_was_in(
    command: Command, tmp_path: Path, press: Press
) -> None:
    typed = ("stage=pipeline", *SMALL, "pipeline.stages=[preprocess,post_train]")
    press("engines.torch.step.learning_rate", 1)
    stopped = command(*typed, cwd=tmp_path)
    assert (stopped.code, stopped.stderr) == (130, GOES_ON)
    assert runs.steps(tmp_path / RUN) == [1]
    printed = finish(command(*typed, cwd=tmp_path))
    assert f"samples in {SAMPLES} are up to date\n" in printed
    assert f"resuming step 1/4 of {RUN}\n" in printed
    assert runs.steps(tmp_path / RUN) == [1, 2, 4]
