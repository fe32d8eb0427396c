"""8 ranks, dp 2 x cp 2 x tp 2, with a NaN in one sample: what each rank drew, and the skipped step.

The sample is of one data-parallel rank alone; every rank must come to the same decision.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from edited_samples import poisoned
from noting_cases import note_training, notes_of
from ranks import run
from small_runs import SAMPLES, assert_same_tensors, rows_of, small_config, state_of

from cosmos_hydra.data.store import open_store
from cosmos_hydra.diffusion.edm import draw_noise
from cosmos_hydra.tracking import metrics

RANKS = 8
SETTINGS = (
    *("model.num_heads=4", "model.head_dim=24", "model.objective.text_dropout=0.5"),
    *("trainer.global_batch_size=2", "trainer.micro_batch_size=1", "trainer.max_steps=6"),
    *("trainer.save_every=1", "trainer.keep=0", "trainer.validate_every=0", "log.report=false"),
)
MESH = ("parallel.dp_shard=2", "parallel.cp=2", "parallel.tp=2")
SKIPPED = 3
# of dp_shard x cp x tp the first is outermost
SAME_SAMPLES = (range(4), range(4, 8))
Notes = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the samples are, and the runs of one process and of eight."""
    folder = tmp_path_factory.mktemp("skipped")
    poisoned(small_samples, folder, math.nan, step=SKIPPED - 1)
    run(1, note_training, folder, SETTINGS, folder / "alone")
    run(RANKS, note_training, folder, (*SETTINGS, *MESH), folder / "ranks")
    return folder


@pytest.fixture(scope="module")
def notes(folder: Path) -> list[Notes]:
    """Return what each of the ranks noted at each step."""
    return notes_of(folder / "ranks", RANKS)


def test_the_weights_of_every_rank_stay_bitwise_at_a_nan_of_one(
    folder: Path, notes: list[Notes]
) -> None:
    for steps in notes:
        changed = [
            number + 2
            for number, (before, after) in enumerate(zip(steps, steps[1:], strict=False))
            if before["weights"] != after["weights"]
        ]
        assert changed == [2, 4, 5, 6]
    assert_same_tensors(state_of(folder / "ranks", 2), state_of(folder / "ranks", 3))


def test_a_step_with_a_nan_on_one_rank_is_that_of_one_process(
    folder: Path, notes: list[Notes]
) -> None:
    bad = notes[0][SKIPPED - 1]["ids"][1]
    for name in ("alone", "ranks"):
        rows = rows_of(folder / name)
        assert [row["step"] for row in rows if row.get("skipped")] == [SKIPPED]
        losses = metrics.read(folder / name / "losses.jsonl")
        assert [(r["step"], r["sample"]) for r in losses if r["loss"] is None] == [(SKIPPED, bad)]
    for found, wanted in zip(rows_of(folder / "ranks"), rows_of(folder / "alone"), strict=True):
        assert found.keys() == wanted.keys()
        for key in ("loss", "grad_norm"):
            is_number = wanted[key] is not None
            assert found[key] == (pytest.approx(wanted[key], rel=1e-5) if is_number else None)


def test_data_parallel_ranks_draw_other_noise_and_the_others_of_a_sample_the_same(
    notes: list[Notes],
) -> None:
    for step in range(6):
        drawn = [notes[rank][step]["drawn"] for rank in range(RANKS)]
        for position, ranks in enumerate(SAME_SAMPLES):
            for rank in ranks:
                (found,) = drawn[rank]
                assert found == position
                for name in ("sigma", "noise"):
                    first = drawn[ranks[0]][position][name]
                    assert torch.equal(drawn[rank][position][name], first)
        one, other = drawn[0][0], drawn[4][1]
        assert one["sigma"] != other["sigma"]
        assert not torch.isclose(one["noise"], other["noise"]).any()


def test_text_is_dropped_as_a_function_of_seed_step_and_sample(
    folder: Path, notes: list[Notes]
) -> None:
    config = small_config(folder, *SETTINGS)
    store = open_store(str(folder / SAMPLES))
    kept = set()
    for rank in range(RANKS):
        for step, noted in enumerate(notes[rank]):
            for position, drawn in noted["drawn"].items():
                sample_id = noted["ids"][position]
                copy = noted["ids"][:position].count(sample_id)
                shape = store.load(sample_id).latent_CFHW.shape
                wanted = draw_noise(
                    shape, config.model.objective, config.seed, step, sample_id, copy
                )
                assert drawn["keeps text"] == wanted.keeps_text
                assert torch.equal(drawn["noise"], wanted.noise_CFHW)
                assert drawn["sigma"] == wanted.sigma
                kept.add(drawn["keeps text"])
    assert kept == {True, False}
