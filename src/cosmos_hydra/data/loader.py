"""Which samples make a step, with their noise; a function of (seed, step), read ahead by one.

Every epoch is a permutation of the training samples; a step takes the next ones, across the end
of an epoch, so nothing depends on where a run was interrupted.
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from cosmos_hydra.config import ObjectiveConfig
from cosmos_hydra.data.store import Sample, SampleStore
from cosmos_hydra.diffusion.edm import Noise, draw_noise
from cosmos_hydra.seeds import numpy_generator


@dataclass(frozen=True)
class Batch:
    """Samples of one forward pass: one shape, one fps. Legend as in edm.py."""

    positions: list[int]  # places of the samples in the step, over all ranks
    latent_BCFHW: torch.Tensor
    text_BTD: torch.Tensor
    padding_B1HW: torch.Tensor
    fps: float
    sigma_B: torch.Tensor
    noise_BCFHW: torch.Tensor
    # of a Video2World model: how many latent frames are given, and the sigma of their own noise
    given_B: torch.Tensor | None = None
    given_sigma_B: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        tensors: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **tensors)


def sample_ids(ids: list[str], seed: int, step: int, count: int) -> list[str]:
    """Return the samples of a step, counted from 0."""
    chosen = []
    for position in range(step * count, (step + 1) * count):
        epoch, index = divmod(position, len(ids))
        order = numpy_generator(seed, "order", epoch).permutation(len(ids))
        chosen.append(ids[order[index]])
    return chosen


Item = tuple[int, Sample, Noise]


def collate(items: list[Item], micro_batch_size: int, at_least: int = 0) -> list[Batch]:
    """Return batches of at most `micro_batch_size` samples that share latent shape and fps.

    At least so many, where there are enough samples.
    """
    groups: dict[tuple[torch.Size, float], list[Item]] = {}
    for item in items:
        _, sample, _ = item
        groups.setdefault((sample.latent_CFHW.shape, sample.fps), []).append(item)
    parts = [
        group[first : first + micro_batch_size]
        for group in groups.values()
        for first in range(0, len(group), micro_batch_size)
    ]
    while len(parts) < min(at_least, len(items)):
        largest = max(parts, key=len)
        parts.append([largest.pop()])
    return [_stack(part) for part in parts]


def _stack(items: list[Item]) -> Batch:
    texts = [
        sample.text_TD if noise.keeps_text else torch.zeros_like(sample.text_TD)
        for _, sample, noise in items
    ]
    return Batch(
        positions=[position for position, _, _ in items],
        latent_BCFHW=torch.stack([sample.latent_CFHW for _, sample, _ in items]).float(),
        text_BTD=torch.stack(texts),
        padding_B1HW=torch.stack([sample.padding_1HW for _, sample, _ in items]),
        fps=items[0][1].fps,
        sigma_B=torch.stack([noise.sigma for _, _, noise in items]),
        noise_BCFHW=torch.stack([noise.noise_CFHW for _, _, noise in items]),
        **_given([noise for _, _, noise in items]),
    )


def _given(noises: list[Noise]) -> dict[str, torch.Tensor]:
    counts = [noise.given for noise in noises if noise.given is not None]
    sigmas = [noise.given_sigma for noise in noises if noise.given_sigma is not None]
    if not counts:
        return {}
    return {"given_B": torch.tensor(counts), "given_sigma_B": torch.stack(sigmas)}


class Loader:
    """Iterate over the steps from `first_step` to `last_step`, each a list of batches."""

    def __init__(
        self,
        store: SampleStore,
        ids: list[str],
        objective: ObjectiveConfig,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.store, self.ids, self.objective, self.seed = store, ids, objective, seed
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.part = part  # which of how many equal parts of a step's samples this rank loads

    def load(self, step: int) -> list[Batch]:
        """Return the batches of one step."""
        seen: Counter[str] = Counter()
        items = []
        place, parts = self.part
        size = self.global_batch_size // parts
        own = range(place * size, (place + 1) * size)
        ids = self.sample_ids(step)
        for position, sample_id in enumerate(ids):
            if position in own:
                sample = self.store.load(sample_id)
                shape, copy = sample.latent_CFHW.shape, seen[sample_id]
                noise = draw_noise(shape, self.objective, self.seed, step, sample_id, copy)
                items.append((position, sample, noise))
            seen[sample_id] += 1
        shares = [ids[first : first + size] for first in range(0, len(ids), size)]
        # every rank makes as many passes: they gather weights together
        most = max(map(self._num_batches, shares)) if parts > 1 else 0
        return collate(items, self.micro_batch_size, most)

    def _num_batches(self, ids: list[str]) -> int:
        rates = Counter(map(self.store.fps_of, ids))
        return sum(-(-count // self.micro_batch_size) for count in rates.values())

    def sample_ids(self, step: int) -> list[str]:
        """Return the samples of a step over all ranks, by their position in it."""
        return sample_ids(self.ids, self.seed, step, self.global_batch_size)

    def steps(self, first_step: int, last_step: int) -> Iterator[list[Batch]]:
        """Yield the batches of each step in [first_step, last_step), reading one step ahead."""
        with ThreadPoolExecutor(max_workers=1) as pool:
            ahead = pool.submit(self.load, first_step) if first_step < last_step else None
            for step in range(first_step, last_step):
                assert ahead is not None
                batches = ahead.result()
                ahead = pool.submit(self.load, step + 1) if step + 1 < last_step else None
                yield batches
