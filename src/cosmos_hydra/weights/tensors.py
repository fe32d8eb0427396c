"""Whole weights one after the other, in float32 on the CPU, whatever holds them.

Adapters come merged into the weights they belong to: W + alpha / rank * B @ A.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader

from cosmos_hydra.config import PeftConfig
from cosmos_hydra.engines.torch import state
from cosmos_hydra.errors import StageError
from cosmos_hydra.models.transformer import initial
from cosmos_hydra.reading import open_tensors, shown
from cosmos_hydra.weights import diffusers
from cosmos_hydra.weights.base import base_of
from cosmos_hydra.weights.locate import Located
from cosmos_hydra.weights.torch_metadata import read_metadata

# from the name and the shape of a weight
Read = Callable[[str, torch.Size], torch.Tensor]


def reader_of(weights: Located, elsewhere: str | None = None) -> Read:
    """Return what reads one weight; `elsewhere` is where the weights below adapters may lie now.

    Raises: StageError when those are gone, have changed, or something cannot be read.
    """
    found = weights.checkpoint
    if found is None:
        return _Folder(weights.transformer).read
    if found.peft is None:
        return _Stored(found.state).read
    base = base_of(found, elsewhere)
    below = reader_of(base, elsewhere) if isinstance(base, Located) else _random(base)
    return _merged(below, adapters_in(found.state), found.peft)


def adapters_in(folder: Path) -> dict[str, torch.Tensor]:
    """Return all weights of the checkpoint state of a LoRA run, whole."""
    stored = _Stored(folder)
    names = [key.partition(".")[2] for key in stored.shapes if key.startswith(f"{state.WEIGHT}.")]
    return {
        name: stored.read(name, torch.Size(stored.shapes[f"{state.WEIGHT}.{name}"]))
        for name in names
    }


def _merged(below: Read, adapters: dict[str, torch.Tensor], peft: PeftConfig) -> Read:
    def read(name: str, shape: torch.Size) -> torch.Tensor:
        weight, layer = below(name, shape), name.removesuffix(".weight")
        if f"{layer}.lora_A.weight" not in adapters:
            return weight
        down, up = (adapters[f"{layer}.lora_{matrix}.weight"] for matrix in "AB")
        return weight + peft.alpha / peft.rank * (up @ down)

    return read


def _random(seed: int) -> Read:
    return lambda name, shape: initial(name, shape, seed)


class _Folder:
    """A folder in diffusers layout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def places(self) -> dict[str, Path]:
        places: dict[str, Path] = {}
        for path in diffusers.weight_files(self.folder):
            with _reading(path), open_tensors(path) as file:
                places |= dict.fromkeys(file.keys(), path)
        return places

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        if name not in self.places:
            raise StageError(f"{self.folder} does not fit the model: missing {name}")
        path = self.places[name]
        with _reading(path), open_tensors(path) as file:
            tensor = file.get_tensor(name)
        return _fitting(tensor, name, shape, self.folder)


class _Stored:
    """The state of a checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # refuses what torch's reader would run
        self.shapes = {key: one.shape for key, one in read_metadata(folder).tensors.items()}
        self.reader = _Reader(folder)

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        key = f"{state.WEIGHT}.{name}"
        if key not in self.shapes:
            raise StageError(
                f"checkpoint {self.folder.parent} does not fit the model: missing {key}"
            )
        tensor = torch.empty(self.shapes[key])
        state.fetch({key: tensor}, self.reader, None)
        return _fitting(tensor, name, shape, self.folder)


class _Reader(FileSystemReader):
    """Read `.metadata` once, and not again for every tensor."""

    @cached_property
    def _metadata(self) -> Any:
        return super().read_metadata()

    def read_metadata(self, *arguments: Any, **options: Any) -> Any:
        return self._metadata


def _fitting(tensor: torch.Tensor, name: str, shape: torch.Size, folder: Path) -> torch.Tensor:
    if tensor.shape != shape:
        found = f"{name} is {list(tensor.shape)}, not {list(shape)}"
        raise StageError(f"{folder} does not fit the model: {found}")
    return tensor.float()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise StageError(f"{path} cannot be read ({shown(error)})") from error
