"""Weights of our own runs, in float32, whatever the mesh that saved them.

Adapters come merged into the weights they belong to: W + alpha / rank * B @ A.
"""

from pathlib import Path

import torch

from cosmos_hydra.config import PeftConfig
from cosmos_hydra.engines.torch import state
from cosmos_hydra.models.transformer import initial
from cosmos_hydra.weights.source import Entry, Shapes, Source, WholeTensor
from cosmos_hydra.weights.torch_reader import Reader


class Stored(Source):
    """The weights in the state of a checkpoint; moments beside them are not looked at."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.parent)
        self.reader = Reader(folder)
        for key, tensor in self.reader.stored.tensors.items():
            kind, _, name = key.partition(".")
            if kind == state.WEIGHT:
                self.entries[name] = Entry(tensor.shape, getattr(torch, tensor.dtype), key)

    def get(self, name: str) -> WholeTensor:
        key = self.label_of(name)
        tensor = torch.empty(self.entries[name].shape)
        state.fetch({key: tensor}, self.reader, None)
        return tensor

    def label_of(self, name: str) -> str:
        return f"{state.WEIGHT}.{name}"


class Merged(Source):
    """Weights with the adapters of a LoRA run merged into them."""

    def __init__(self, below: Source, adapters: dict[str, torch.Tensor], peft: PeftConfig) -> None:
        super().__init__(below.place, below.entries, below.problems)
        self.below, self.adapters, self.peft = below, adapters, peft

    def get(self, name: str) -> WholeTensor:
        weight, layer = self.below.read(name).float(), name.removesuffix(".weight")
        if f"{layer}.lora_A.weight" not in self.adapters:
            return weight
        down, up = (self.adapters[f"{layer}.lora_{matrix}.weight"] for matrix in "AB")
        return weight + self.peft.alpha / self.peft.rank * (up @ down)


class Random(Source):
    """The weights that a run from scratch begins with."""

    def __init__(self, shapes: Shapes, seed: int) -> None:
        entries = {name: Entry(tuple(shape), torch.float32, name) for name, shape in shapes.items()}
        super().__init__(Path(), entries)
        self.shapes, self.seed = shapes, seed

    def get(self, name: str) -> WholeTensor:
        return initial(name, self.shapes[name], self.seed)


def adapters_in(folder: Path) -> dict[str, torch.Tensor]:
    """Return all weights of the checkpoint state of a LoRA run, whole."""
    stored = Stored(folder)
    return {name: stored.read(name) for name in stored.entries}
