"""Weights in any format, by the names they have in diffusers' layout, read a tensor at a time."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from cosmos_hydra.errors import StageError
from cosmos_hydra.reading import listed, shown

Shapes = dict[str, torch.Size]


class WholeTensor(Protocol):
    """A tensor, or one in a file, of which a slice can be had."""

    def __getitem__(self, slices: tuple[slice, ...] | slice) -> torch.Tensor: ...


@dataclass(frozen=True)
class Entry:
    """A tensor on disk: its shape, its dtype, and its name there."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    label: str


@dataclass
class Source:
    """What a format has to provide; formats derive from it."""

    # folder or file, for messages
    place: Path
    # by diffusers' names
    entries: dict[str, Entry] = field(default_factory=dict)
    # what else keeps the place from being these weights, a line each
    problems: list[str] = field(default_factory=list)

    def get(self, name: str) -> WholeTensor:
        """Return a weight to take slices of, in the dtype it has; read no earlier than that.

        Raises: StageError when it cannot be read.
        """
        raise NotImplementedError

    def read(self, name: str) -> torch.Tensor:
        """Return a whole weight on the CPU, in the dtype it has. Raises: StageError."""
        return self.get(name)[:]

    def label_of(self, name: str) -> str:
        """Return what the format calls a weight that it may not have."""
        return name

    def check(self, wanted: Shapes) -> None:
        """Raise StageError listing every missing, unexpected and misshapen weight."""
        problems = list(self.problems)
        for name, entry in self.entries.items():
            shape = list(wanted.get(name, ()))
            if name not in wanted:
                problems.append(f"unexpected {shown(entry.label)}")
            elif not entry.dtype.is_floating_point:
                kind = str(entry.dtype).removeprefix("torch.")
                problems.append(f"{entry.label} is {kind}, not a floating type")
            elif list(entry.shape) != shape:
                problems.append(f"{entry.label} is {list(entry.shape)}, not {shape}")
        missing = sorted(wanted.keys() - self.entries.keys())
        problems += dict.fromkeys(f"missing {self.label_of(name)}" for name in missing)
        if problems:
            raise StageError(f"{self.place} does not fit the model: {listed(problems)}")


def as_bytes(tensor: torch.Tensor) -> Any:
    """Return the content of a tensor as a numpy array of bytes; numpy has no bfloat16."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy()
