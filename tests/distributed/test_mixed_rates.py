"""Samples of two rates: no forward pass mixes them, and every rank makes as many passes.

Ranks gather weights together: one pass more on one of them would wait for the others for ever.
"""

from pathlib import Path
from typing import Any

import pytest
from compare import assert_same_gradients, found_in
from distributed_cases import compute_gradients
from edited_samples import change_info, copied
from ranks import folder_of, run
from small_runs import small_config

from cosmos_hydra.data.loader import Loader, collate, sample_ids
from cosmos_hydra.data.store import SampleStore
from cosmos_hydra.diffusion.edm import draw_noise

STEP = 3  # of `compute_gradients`
SIZE = 8
SETTINGS = ("trainer.global_batch_size=8", "trainer.micro_batch_size=2")


@pytest.fixture(scope="module")
def mixed(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    """Return samples of which one, of the second rank of two at STEP, has another rate."""
    store = copied(small_samples, tmp_path_factory.mktemp("mixed"))
    ids = sample_ids(store.splits["train"], 0, STEP, SIZE)
    other = next(i for i in ids[SIZE // 2 :] if ids.count(i) == 1)
    change_info(store, other, fps=30.0)
    return store


def loaders(store: SampleStore, parts: int, micro_batch_size: int) -> list[Loader]:
    """Return the loader of each data-parallel rank."""
    config = small_config(Path())
    objective, ids = config.model.objective, store.splits["train"]
    sizes = (SIZE, micro_batch_size)
    return [Loader(store, ids, objective, 0, *sizes, (part, parts)) for part in range(parts)]


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 4])
def test_every_rank_makes_as_many_passes_and_none_mixes_rates(
    mixed: SampleStore, parts: int, micro_batch_size: int
) -> None:
    for step in range(6):
        ids = sample_ids(mixed.splits["train"], 0, step, SIZE)
        ranks = [loader.load(step) for loader in loaders(mixed, parts, micro_batch_size)]
        assert len({len(batches) for batches in ranks}) == 1
        for part, batches in enumerate(ranks):
            own = list(range(part * SIZE // parts, (part + 1) * SIZE // parts))
            assert sorted(p for batch in batches for p in batch.positions) == own
            for batch in batches:
                assert 1 <= len(batch.positions) <= micro_batch_size
                assert {mixed.fps_of(ids[p]) for p in batch.positions} == {batch.fps}


def test_a_rank_alone_would_make_fewer_passes_than_another(mixed: SampleStore) -> None:
    objective = small_config(Path()).model.objective
    ids = sample_ids(mixed.splits["train"], 0, STEP, SIZE)
    items = []
    for position, sample_id in enumerate(ids):
        sample = mixed.load(sample_id)
        shape = sample.latent_CFHW.shape
        items.append((position, sample, draw_noise(shape, objective, 0, STEP, sample_id, 0)))
    halves = items[: SIZE // 2], items[SIZE // 2 :]
    assert [len(collate(half, 2)) for half in halves] == [2, 3]
    assert [len(collate(half, 2, 3)) for half in halves] == [3, 3]
    assert [len(collate(half, 2, 9)) for half in halves] == [4, 4]  # no empty ones


def test_gradients_of_ranks_with_other_rates_equal_those_of_one_process(
    mixed: SampleStore, tmp_path: Path
) -> None:
    samples = mixed.layout.folder.parents[1]
    found: dict[str, Any] = {}
    for name, world_size, degree in (("alone", 1, 1), ("fsdp 2", 2, 2)):
        folder = folder_of(tmp_path, name)
        overrides = (*SETTINGS, f"parallel.dp_shard={degree}")
        run(world_size, compute_gradients, samples, overrides, folder)
        found[name] = found_in(folder)
    assert_same_gradients(found["fsdp 2"], found["alone"])
