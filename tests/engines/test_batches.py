"""Which samples a step takes, with which noise, and how they are stacked."""

from pathlib import Path

import pytest
import torch
from small_runs import SAMPLES

from cosmos_hydra.config import ObjectiveConfig
from cosmos_hydra.data.clips import TRAIN
from cosmos_hydra.data.loader import Batch, Item, Loader, collate, sample_ids
from cosmos_hydra.data.store import Sample, open_store
from cosmos_hydra.diffusion.edm import Noise, draw_noise

IDS = [str(number) for number in range(7)]


@pytest.mark.parametrize("count", [1, 3, 7, 10])
def test_every_epoch_is_a_permutation_also_across_steps(count: int) -> None:
    steps = 7 * 4 // count + 4
    stream = [name for step in range(steps) for name in sample_ids(IDS, 0, step, count)]
    epochs = [stream[start : start + 7] for start in range(0, len(stream) - 6, 7)]
    assert len(epochs) >= 4
    assert all(sorted(epoch) == IDS for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_order_depends_on_the_seed_alone() -> None:
    later = sample_ids(IDS, 0, 11, 3)
    [sample_ids(IDS, 0, step, 3) for step in range(5)]
    assert sample_ids(IDS, 0, 11, 3) == later
    orders = {tuple(sample_ids(IDS, seed, 0, 7)) for seed in range(5)}
    assert len(orders) > 1


def test_the_batch_size_does_not_change_the_order_of_samples() -> None:
    one_by_one = [name for step in range(12) for name in sample_ids(IDS, 4, step, 1)]
    in_fours = [name for step in range(3) for name in sample_ids(IDS, 4, step, 4)]
    assert one_by_one == in_fours


def test_a_batch_larger_than_the_data_repeats_samples_with_other_noise(
    small_samples: Path,
) -> None:
    store = open_store(str(small_samples / SAMPLES))
    ids = store.splits[TRAIN][:2]
    loader = Loader(store, ids, ObjectiveConfig(), 0, 4, 4)
    (batch,) = loader.load(step=3)
    assert sorted(loader.sample_ids(3)) == sorted(2 * ids)
    assert batch.positions == [0, 1, 2, 3]
    assert len(set(batch.sigma_B.tolist())) == 4


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    return [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]


def test_steps_do_not_depend_on_where_the_loader_began(small_samples: Path) -> None:
    store = open_store(str(small_samples / SAMPLES))

    def loader() -> Loader:
        return Loader(store, store.splits[TRAIN], ObjectiveConfig(), 0, 3, 2)

    whole = list(loader().steps(0, 6))
    resumed = list(loader().steps(4, 6))
    assert [len(batches) for batches in whole] == [2] * 6
    assert list(loader().steps(6, 6)) == []
    for before, after in zip(whole[4:], resumed, strict=True):
        for one, other in zip(before, after, strict=True):
            assert one.positions == other.positions
            assert all(map(torch.equal, tensors_of(one), tensors_of(other)))


def test_the_noise_of_a_step_is_that_of_its_key(small_samples: Path) -> None:
    store = open_store(str(small_samples / SAMPLES))
    objective = ObjectiveConfig(text_dropout=0.5)
    kept = []
    for step in range(4):
        loader = Loader(store, store.splits[TRAIN], objective, 9, 3, 3)
        (batch,) = loader.load(step)
        assert batch.positions == [0, 1, 2]
        for index, name in enumerate(loader.sample_ids(step)):
            sample = store.load(name)
            noise = draw_noise(sample.latent_CFHW.shape, objective, 9, step, name, 0)
            assert torch.equal(batch.noise_BCFHW[index], noise.noise_CFHW)
            assert batch.sigma_B[index] == noise.sigma
            assert torch.equal(batch.latent_BCFHW[index], sample.latent_CFHW.float())
            assert torch.equal(batch.text_BTD[index], sample.text_TD * noise.keeps_text)
            kept.append(noise.keeps_text)
    assert set(kept) == {True, False}


def test_the_parts_of_several_ranks_are_the_whole_step(small_samples: Path) -> None:
    store = open_store(str(small_samples / SAMPLES))

    def batches(place: int, parts: int) -> list[Batch]:
        # 8 of 5 samples, so that some come twice, with other noise, also on different ranks
        ids, size = store.splits[TRAIN][:5], 8
        part = (place, parts)
        return Loader(store, ids, ObjectiveConfig(), 0, size, size, part).load(step=1)

    ((whole,), first, second) = batches(0, 1), batches(0, 2), batches(1, 2)
    both = [*first, *second]
    assert [batch.positions for batch in both] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for name, tensor in vars(whole).items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(torch.cat([getattr(batch, name) for batch in both]), tensor)


def item(position: int, width: int, fps: float, keeps_text: bool = True) -> Item:
    sample = Sample(
        id=str(position),
        latent_CFHW=torch.full((2, 1, 2, width), float(position), dtype=torch.bfloat16),
        text_TD=torch.ones(3, 4, dtype=torch.bfloat16),
        padding_1HW=torch.zeros(1, 2, width),
        fps=fps,
        caption="",
    )
    return position, sample, Noise(torch.tensor(1.0), torch.zeros(2, 1, 2, width), keeps_text)


def test_a_batch_holds_one_shape_and_one_rate() -> None:
    items = [item(0, 4, 12), item(1, 6, 12), item(2, 4, 24), item(3, 4, 12)]
    batches = collate([*items, item(4, 4, 12)], micro_batch_size=2)
    assert [batch.positions for batch in batches] == [[0, 3], [4], [1], [2]]
    assert [batch.fps for batch in batches] == [12, 12, 12, 24]
    for batch in batches:
        widths = {tensor.shape[-1] for tensor in (batch.latent_BCFHW, batch.padding_B1HW)}
        assert len(widths) == 1
        assert batch.latent_BCFHW.dtype == torch.float32
        assert batch.latent_BCFHW[:, 0, 0, 0, 0].tolist() == batch.positions


def test_dropped_text_becomes_zeros_for_that_sample_only() -> None:
    (batch,) = collate([item(0, 4, 12), item(1, 4, 12, keeps_text=False)], 2)
    assert batch.text_BTD[0].unique().tolist() == [1.0]
    assert batch.text_BTD[1].unique().tolist() == [0.0]
