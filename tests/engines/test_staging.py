"""What a checkpoint is copied into: the same memory each time, and no later step gets in."""

import logging
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import assert_same_tensors, small_config, state_of, train

from cosmos_hydra.engines.torch import state
from cosmos_hydra.engines.torch.staging import Staging
from cosmos_hydra.engines.torch.step import Stepper

CPU = torch.device("cpu")
EACH_STEP = ("trainer.max_steps=3", "trainer.save_every=1", "trainer.keep=0")


def test_a_checkpoint_written_late_is_of_the_step_that_it_names(
    small_samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(small_samples, *EACH_STEP)
    train(config, tmp_path / "prompt")
    applied = [threading.Event() for _ in range(3)]
    apply, write, waits = Stepper.apply, state.write, iter(applied[1:])

    def applying(self: Stepper, outcome: Any) -> None:
        apply(self, outcome)
        next(event for event in applied if not event.is_set()).set()

    def writing_late(*given: Any) -> None:
        is_changed = next(waits, None)  # by the step after; the last one has none
        assert is_changed is None or is_changed.wait(20)
        write(*given)

    monkeypatch.setattr(Stepper, "apply", applying)
    monkeypatch.setattr(state, "write", writing_late)
    train(config, tmp_path / "late")
    for step in (1, 2, 3):
        assert_same_tensors(state_of(tmp_path / "late", step), state_of(tmp_path / "prompt", step))


def test_copies_lie_in_the_same_memory_each_time() -> None:
    table = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(5).bfloat16(), "c": torch.tensor(1)}
    staging = Staging(CPU)
    first = staging.copy(table)
    assert_same_tensors(first, table)
    for tensor in table.values():
        tensor += 1
    assert first["a"][0, 0] == 0
    second = staging.copy(table)
    assert_same_tensors(second, table)
    assert [t.data_ptr() for t in second.values()] == [t.data_ptr() for t in first.values()]
    staging.close()


def test_memory_that_cannot_be_pinned_is_said_once_and_used_all_the_same(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = SimpleNamespace(cudaHostRegister=lambda *given: 2)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: refusing)
    staging = Staging(CPU)
    staging.stream = object()  # type: ignore[assignment]  # as on CUDA
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    with caplog.at_level(logging.WARNING):
        staging.prepare({"a": torch.ones(3), "b": torch.ones(3)})
        assert staging.making is not None
        staging.making.result()
    line = "main memory for checkpoints cannot be pinned (CUDA error 2), so each one holds up"
    assert caplog.messages == [f"{line} training while it is copied; look at `ulimit -l`"]
    assert (sorted(staging.copies), staging.pinned) == (["a", "b"], [])
