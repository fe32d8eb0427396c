"""torch's reader of distributed checkpoints, told what a folder holds in place of unpickling it.

So nothing in a folder is run, and what Megatron-core wrote is read without Megatron-core.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from cosmos_hydra.weights.torch_metadata import StoredFolder, StoredTensor, read_metadata


class Reader(FileSystemReader):
    """Reads tensors; objects beside them it does not know of."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder

    @cached_property
    def stored(self) -> StoredFolder:
        """What the folder holds. Raises: StageError when that is damaged or could run code."""
        return read_metadata(self.folder)

    @cached_property
    def _metadata(self) -> Metadata:
        tensors = self.stored.tensors.items()
        places = {
            MetadataIndex(name, torch.Size(part.offset), number): _StorageInfo(
                part.file, part.first_byte, part.size_bytes
            )
            for name, tensor in tensors
            for number, part in enumerate(tensor.parts)
        }
        found: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {
            name: _as_torch_has_it(tensor) for name, tensor in tensors
        }
        return Metadata(found, storage_data=places, storage_meta=StorageMeta())

    def read_metadata(self, *arguments: Any, **options: Any) -> Metadata:
        return self._metadata


def _as_torch_has_it(tensor: StoredTensor) -> TensorStorageMetadata:
    parts = [
        ChunkStorageMetadata(torch.Size(part.offset), torch.Size(part.shape))
        for part in tensor.parts
    ]
    properties = TensorProperties(dtype=getattr(torch, tensor.dtype))
    return TensorStorageMetadata(properties, torch.Size(tensor.shape), parts)
