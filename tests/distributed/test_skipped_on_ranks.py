"""Ranks with a NaN in one sample: what each rank drew, and the step that is skipped.

The sample is of one data-parallel rank alone; every rank must come to the same decision.
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from edited_samples import poisoned
from noting_cases import note_training, notes_of
from ranks import run
from small_runs import SAMPLES, rows_of, small_config

from cosmos_hydra.data.store import open_store
from cosmos_hydra.diffusion.edm import draw_noise
from cosmos_hydra.tracking import metrics

STEPS = 5  # an epoch
SETTINGS = (
    *("model.num_heads=4", "model.head_dim=24", "model.objective.text_dropout=0.5"),
    *("trainer.global_batch_size=2", "trainer.micro_batch_size=1", f"trainer.max_steps={STEPS}"),
    *("trainer.save_every=0", "trainer.validate_every=0", "log.report=false"),
    "model.num_layers=1",
)
# ranks that share each of the two samples of a step; dp_shard is outermost
MESHES = {
    "dp 2 x tp 2": (2, "parallel.dp_shard=2", "parallel.tp=2"),
    "dp 2 x cp 2 x tp 2": (4, "parallel.dp_shard=2", "parallel.cp=2", "parallel.tp=2"),
}
SKIPPED = 3
Notes = list[dict[str, Any]]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(mesh, marks=() if mesh == "dp 2 x tp 2" else pytest.mark.slow, id=mesh)
        for mesh in MESHES
    ],
)
def mesh(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(small_samples: Path, mesh: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the samples are, and the runs of one process and of several."""
    folder = tmp_path_factory.mktemp("skipped")
    poisoned(small_samples, folder, math.nan, step=SKIPPED - 1)
    sharing, *degrees = MESHES[mesh]
    run(1, note_training, folder, SETTINGS, folder / "alone")
    run(2 * sharing, note_training, folder, (*SETTINGS, *degrees), folder / "ranks")
    return folder


@pytest.fixture(scope="module")
def notes(folder: Path, mesh: str) -> list[Notes]:
    """Return what each of the ranks noted at each step."""
    return notes_of(folder / "ranks", 2 * MESHES[mesh][0])


def test_the_weights_of_every_rank_stay_bitwise_at_a_nan_of_one(notes: list[Notes]) -> None:
    for steps in notes:
        changed = [
            number + 2
            for number, (before, after) in enumerate(pairwise(steps))
            if before["weights"] != after["weights"]
        ]
        assert changed == [2, 4, 5]


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
    for step in range(STEPS):
        drawn = [rank[step]["drawn"] for rank in notes]
        half = len(drawn) // 2
        for position, first in enumerate((drawn[0], drawn[half])):
            for found in drawn[position * half :][:half]:
                assert found.keys() == first.keys() == {position}
                for name in ("sigma", "noise"):
                    assert torch.equal(found[position][name], first[position][name])
        one, other = drawn[0][0], drawn[half][1]
        assert one["sigma"] != other["sigma"]
        assert not torch.isclose(one["noise"], other["noise"]).any()


def test_text_is_dropped_as_a_function_of_seed_step_and_sample(
    folder: Path, notes: list[Notes]
) -> None:
    config = small_config(folder, *SETTINGS)
    store = open_store(str(folder / SAMPLES))
    kept = set()
    for steps in notes:
        for step, noted in enumerate(steps):
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
