"""An interrupted run, started again, leaves bitwise what an uninterrupted one leaves."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import SMALL, Command
from small_runs import (
    SAMPLES,
    assert_same_tensors,
    rows_of,
    small_config,
    state_of,
    train,
    trainer_of,
)

from cosmos_hydra import runs
from cosmos_hydra.engines.torch.step import Stepper
from cosmos_hydra.engines.torch.trainer import Trainer
from cosmos_hydra.errors import Preempted

# a rate that differs at every step, an odd batch over the end of an epoch, two micro-batches
SCHEDULE = (
    "optim.schedule=cosine",
    "optim.warmup_steps=1",
    "trainer.global_batch_size=3",
    "trainer.micro_batch_size=2",
    "parallel.precision=fp32",
)


@pytest.fixture(scope="module")
def whole(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of 4 steps without a stop."""
    run = tmp_path_factory.mktemp("whole")
    train(small_config(small_samples, *SCHEDULE), run)
    return run


def assert_equal_runs(run: Path, whole: Path) -> None:
    assert_same_tensors(state_of(run, 4), state_of(whole, 4))
    assert rows_of(run) == rows_of(whole)
    files = [
        {path.name: path.read_bytes() for path in sorted(runs.step_folder(folder, 4).rglob("*.*"))}
        for folder in (run, whole)
    ]
    names = [name for name in files[0] if name != "manifest.json"]
    assert len(names) == 4
    assert [name for name in names if files[0][name] != files[1][name]] == []


def test_two_and_two_steps_equal_four(small_samples: Path, tmp_path: Path) -> None:
    constant = ("optim.schedule=constant", *SCHEDULE[2:])
    train(small_config(small_samples, *constant), tmp_path / "whole")
    train(small_config(small_samples, *constant, "trainer.max_steps=2"), tmp_path / "parts")
    trainer = train(small_config(small_samples, *constant), tmp_path / "parts")
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole")
    assert trainer.last_loss == rows_of(tmp_path / "whole")[-1]["val_loss"]


def test_a_run_resumed_after_every_step_equals_one_in_one_go(
    small_samples: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after_each_step(monkeypatch, signal.SIGTERM)
    for step in range(1, 5):
        trainer = trainer_of(small_config(small_samples, *SCHEDULE), tmp_path)
        with pytest.raises(Preempted, match=f"stopped by a signal at step {step}"):
            trainer.train()
        assert runs.steps(tmp_path)[-1] == step
    assert_same_tensors(state_of(tmp_path, 4), state_of(whole, 4))
    # a stop comes before validation, which the next start makes up for; after step 4 there is none
    assert rows_of(tmp_path) == rows_of(whole)[:-1]


def interrupt_after_each_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    update = Trainer._update

    def interrupted(self: Trainer, ids: list, batches: list) -> tuple:
        rows = update(self, ids, batches)
        os.kill(os.getpid(), number)
        return rows

    monkeypatch.setattr(Trainer, "_update", interrupted)


@pytest.mark.parametrize(
    ("number", "code", "text"),
    [
        (signal.SIGTERM, 75, "stopped by a signal at step 1 of runs/one; the same command goes on"),
        (signal.SIGUSR2, 75, "stopped by a signal at step 1 of runs/one; the same command goes on"),
        (signal.SIGINT, 130, "interrupted; the same command goes on from here"),
    ],
)
def test_the_same_command_goes_on_after_a_signal(
    command: Command,
    small_samples: Path,
    whole: Path,
    tmp_path: Path,
    number: int,
    code: int,
    text: str,
) -> None:
    typed = ["stage=post_train", *SMALL, *SCHEDULE, f"data.path={small_samples / SAMPLES}"]
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after_each_step(patch, number)
        stopped = command(*typed, "name=one", cwd=tmp_path)
    assert stopped.code == code
    assert stopped.stderr.startswith(f"cosmos-hydra: {text}")
    assert runs.steps(tmp_path / "runs" / "one") == [1]
    resumed = command(*typed, "name=one", cwd=tmp_path)
    assert resumed.code == 0
    assert "resuming step 1/4 of runs/one" in resumed.stdout
    assert_equal_runs(tmp_path / "runs" / "one", whole)


def test_an_error_in_a_step_leaves_a_checkpoint_of_the_step_before(
    small_samples: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(small_samples, *SCHEDULE, "trainer.save_every=0")
    losses, calls = Stepper._losses, []

    def failing(self: Stepper, batch: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 6:  # the second micro-batch of the third step
            raise RuntimeError("the cosmic ray")
        return losses(self, batch)

    monkeypatch.setattr(Stepper, "_losses", failing)
    with pytest.raises(RuntimeError, match="the cosmic ray"):
        train(config, tmp_path)
    monkeypatch.undo()
    assert runs.steps(tmp_path) == [2]
    train(config, tmp_path)
    assert_equal_runs(tmp_path, whole)


def test_weights_that_an_update_left_half_changed_are_not_saved(
    small_samples: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(small_config(small_samples, "trainer.save_every=2"), tmp_path)
    step = trainer.optimizer.step

    def torn() -> None:
        step()
        if trainer.step == 3:
            raise RuntimeError("the power went")

    trainer.optimizer.step = torn  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the power went"):
        trainer.train()
    assert runs.steps(tmp_path) == [2]


def test_rows_after_the_resumed_step_and_half_rows_are_cut(
    small_samples: Path, whole: Path, tmp_path: Path
) -> None:
    config = small_config(small_samples, *SCHEDULE)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after_each_step(patch, signal.SIGTERM)
        with pytest.raises(Preempted, match="stopped by a signal"):
            train(config, tmp_path)
    # as left by a kill after step 3, whose checkpoint was not there yet
    with (tmp_path / "metrics.jsonl").open("a") as file:
        for step in (2, 3):
            file.write(json.dumps({"step": step, "loss": -1.0}) + "\n")
        file.write('{"step": 4, "lo')
    train(config, tmp_path)
    assert rows_of(tmp_path) == rows_of(whole)


def test_a_finished_run_says_so_and_what_to_change(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    typed = ["stage=post_train", *SMALL, f"data.path={small_samples / SAMPLES}", "name=one"]
    assert command(*typed, cwd=tmp_path).code == 0
    run = tmp_path / "runs" / "one"
    before = (run / "metrics.jsonl").read_bytes(), sorted(run.rglob("*.distcp"))
    again = command(*typed, cwd=tmp_path)
    assert again.code == 0
    assert (
        "runs/one has finished at step 4; raise trainer.max_steps, or use resume.mode=fresh"
        in again.stdout
    )
    assert before == ((run / "metrics.jsonl").read_bytes(), sorted(run.rglob("*.distcp")))
