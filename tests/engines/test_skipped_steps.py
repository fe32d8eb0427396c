"""A loss or gradient that is no finite number: the step is skipped, named, and counted."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import SMALL, Command
from edited_samples import poisoned
from small_runs import (
    SAMPLES,
    assert_same_tensors,
    rows_of,
    small_config,
    state_of,
    train,
    weight_of,
)

from cosmos_hydra import runs
from cosmos_hydra.data.loader import sample_ids
from cosmos_hydra.data.store import open_store
from cosmos_hydra.engines.torch.trainer import Trainer
from cosmos_hydra.errors import StageError

QUIET = ("trainer.validate_every=0", "trainer.save_every=1", "trainer.keep=0")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_with_a_bad_sample_changes_nothing_and_names_the_sample(
    command: Command, small_samples: Path, tmp_path: Path, value: float
) -> None:
    ids = poisoned(small_samples, tmp_path, value)
    typed = ["stage=post_train", *SMALL, f"data.path={tmp_path / SAMPLES}", "name=one", *QUIET]
    outcome = command(*typed, cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (0, "")
    run = tmp_path / "runs/one"
    name = open_store(str(tmp_path / SAMPLES)).name_of(ids[1])
    assert " from frame " in name
    assert (
        f"warning: step 3 is skipped: loss nan, gradient norm nan; sample {name}\n"
        in outcome.stdout
    )
    assert "trained 4 steps, " in outcome.stdout
    assert ", 1 of them skipped\n" in outcome.stdout
    assert_same_tensors(state_of(run, 2), state_of(run, 3))
    assert not torch.equal(*(weight_of(run, step, "proj_out.weight") for step in (3, 4)))
    row = rows_of(run)[2]
    assert (row["loss"], row["grad_norm"], row["skipped"]) == (None, None, True)
    assert [row["step"] for row in rows_of(run) if row.get("skipped")] == [3]
    losses = [json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()]
    assert [(row["step"], row["sample"]) for row in losses if row["loss"] is None] == [(3, ids[1])]
    assert [row["step"] for row in losses] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert all(row["sigma"] > 0 for row in losses)


def test_a_gradient_alone_that_is_infinite_names_all_samples_of_the_step(
    small_samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    update = Trainer._update

    def overflow(self: Trainer, ids: list, batches: list) -> tuple:
        weight = self.transformer.proj_out.weight
        hook = weight.register_hook(lambda g: g * math.inf if self.step == 1 else g)
        try:
            return update(self, ids, batches)
        finally:
            hook.remove()

    monkeypatch.setattr(Trainer, "_update", overflow)
    train(small_config(small_samples, *QUIET), tmp_path)
    assert_same_tensors(state_of(tmp_path, 1), state_of(tmp_path, 2))
    ids = sample_ids(open_store(str(small_samples / SAMPLES)).splits["train"], 0, 1, 2)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning.startswith("step 2 is skipped: loss 0.")
    assert all(f" {sample_id} (" in warning for sample_id in ids)


def test_too_many_in_a_row_stop_the_run_and_a_repeated_command_at_the_next(
    small_samples: Path, tmp_path: Path
) -> None:
    overrides = ["optim.lr=1e30", "trainer.max_steps=9", "trainer.max_skipped_steps=2", *QUIET]
    config = small_config(small_samples, *overrides)
    for last in (4, 5):
        with pytest.raises(
            StageError,
            match=rf"^trainer\.max_skipped_steps=2: steps up to {last} were skipped, each with a "
            r"loss or gradient that is no finite number; lower optim\.lr, or look at the samples",
        ):
            train(config, tmp_path)
        assert runs.steps(tmp_path)[-1] == last
    assert_same_tensors(state_of(tmp_path, 1), state_of(tmp_path, 5))


def test_a_good_step_in_between_starts_the_count_again(small_samples: Path, tmp_path: Path) -> None:
    poisoned(small_samples, tmp_path, math.nan, step=0)
    config = small_config(tmp_path, "trainer.max_steps=14", "trainer.max_skipped_steps=1", *QUIET)
    train(config, tmp_path / "run")
    skipped = [row["step"] for row in rows_of(tmp_path / "run") if row.get("skipped")]
    assert len(skipped) == 2  # the first two epochs of 5 steps; the third is not finished


def test_a_run_stopped_after_a_skipped_step_goes_on_bitwise(
    small_samples: Path, tmp_path: Path
) -> None:
    poisoned(small_samples, tmp_path, math.nan)
    train(small_config(tmp_path, *QUIET), tmp_path / "whole")
    train(small_config(tmp_path, *QUIET, "trainer.max_steps=3"), tmp_path / "cut")
    train(small_config(tmp_path, *QUIET), tmp_path / "cut")
    assert_same_tensors(state_of(tmp_path / "whole", 4), state_of(tmp_path / "cut", 4))
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "cut")
