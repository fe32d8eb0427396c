"""Megatron's torch_dist format: a torch.distributed.checkpoint folder with NeMo's arrays.

Only tensors are read; `common.pt` and the pickled objects beside them never are.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import ChunkStorageMetadata, LoadPlan
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from cosmos_hydra import files
from cosmos_hydra.engines.torch.state import fetch
from cosmos_hydra.errors import StageError
from cosmos_hydra.weights.nemo import Array, Nemo, is_used
from cosmos_hydra.weights.torch_metadata import METADATA, StoredTensor, read_metadata
from cosmos_hydra.weights.torch_reader import Reader


def open_torch_dist(folder: Path) -> Nemo:
    """Return the weights in a folder. Raises: StageError when its `.metadata` is refused."""
    reader = Reader(folder)
    tensors = reader.stored.tensors.items()
    arrays: dict[str, Array] = {
        key: StoredArray(key, tensor, reader) for key, tensor in tensors if is_used(key)
    }
    return Nemo(folder, arrays, [])


def digest_of(folder: Path) -> str:
    """Return a hash over the hashes of the files with tensors, and of `.metadata`."""
    tensors = read_metadata(folder).tensors
    names = {name for key, tensor in tensors.items() if is_used(key) for name in tensor.files}
    return files.sha256_of_json(
        {name: files.sha256_of(folder / name) for name in sorted({METADATA, *names})}
    )


@dataclass(frozen=True)
class StoredArray:
    """One array: what `.metadata` says of it, and what reads it."""

    key: str
    stored: StoredTensor
    reader: Reader

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.stored.dtype)

    def read(self, layer: int | None = None) -> torch.Tensor:
        first = (0, self.shape[0]) if layer is None else (layer, 1)
        size = torch.Size((first[1], *self.shape[1:]))
        part = torch.empty(size, dtype=self.dtype)
        offset = torch.Size((first[0], *(0 for _ in self.shape[1:])))
        chunk = ChunkStorageMetadata(offset, size)
        fetch({self.key: part}, self.reader, None, _PartPlanner(self.key, part, chunk))
        return part if layer is None else part[0]


class _PartPlanner(DefaultLoadPlanner):
    """Read one part of one tensor; torch's own planner reads what a rank's tensors cover."""

    def __init__(self, key: str, part: torch.Tensor, chunk: ChunkStorageMetadata) -> None:
        super().__init__()
        self.key, self.part, self.chunk = key, part, chunk

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        stored: Any = self.metadata.state_dict_metadata[self.key]
        items = create_read_items_for_chunk_list(self.key, stored, [self.chunk])
        # torch would leave what no file has as it is
        if sum(prod(item.lengths) for item in items) != self.part.numel():
            raise StageError(f"the folder does not hold all of {self.key}")
        return LoadPlan(items)

    def lookup_tensor(self, index: Any) -> torch.Tensor:
        return self.part
