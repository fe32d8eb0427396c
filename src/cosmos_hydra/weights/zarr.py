"""Megatron's zarr format: a folder an array, `.zarray` beside raw chunks, nothing compressed.

Read and written here: the one dtype that matters, "bfloat16", is an extension by TensorStore that
the zarr library refuses, and Megatron-core itself has dropped the format.
Source: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html; spelling of bfloat16:
https://google.github.io/tensorstore/driver/zarr/index.html
"""

import json
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cosmos_hydra import files
from cosmos_hydra.errors import StageError
from cosmos_hydra.reading import contained, read_json, shown, size_of
from cosmos_hydra.weights.nemo import Array, Nemo, is_used
from cosmos_hydra.weights.source import as_bytes

HEADER = ".zarray"
DTYPES = {
    "bfloat16": torch.bfloat16,
    "<f2": torch.float16,
    "<f4": torch.float32,
    "<f8": torch.float64,
}
SPELLED = {dtype: spelling for spelling, dtype in DTYPES.items()}
MAX_DIMS = 8


def is_zarr(folder: Path) -> bool:
    """Return whether a folder is a checkpoint of this format."""
    return any(folder.glob(f"module.*/{HEADER}"))


def open_zarr(folder: Path) -> Nemo:
    """Return the weights in a folder. Raises: StageError when it cannot be listed."""
    arrays: dict[str, Array] = {}
    problems = []
    for header in sorted(folder.glob(f"*/{HEADER}")):
        key = header.parent.name
        if not is_used(key):
            continue
        try:
            arrays[key] = ZarrArray.open(folder, key)
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{shown(key)} cannot be read ({shown(error)})")
    return Nemo(folder, arrays, problems)


def digest_of(folder: Path) -> str:
    """Return a hash of all arrays that count: over the hashes of their files."""
    keys = (header.parent.name for header in folder.glob(f"*/{HEADER}"))
    paths = (path for key in keys if is_used(key) for path in (folder / key).iterdir())
    return files.sha256_of_json(
        {
            path.relative_to(folder).as_posix(): files.sha256_of(path)
            for path in paths
            if path.is_file()
        }
    )


@dataclass(frozen=True)
class ZarrArray:
    """One array: its header, and chunks named `0.0.0` by their place in the grid."""

    folder: Path
    key: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def open(cls, folder: Path, key: str) -> "ZarrArray":
        """Return an array. Raises: ValueError and what a header that makes no sense raises."""
        header = read_json(contained(folder, f"{key}/{HEADER}"))
        plain = {"zarr_format": 2, "order": "C", "compressor": None, "filters": None}
        odd = [name for name, value in plain.items() if header.get(name) != value]
        if odd or header.get("dimension_separator", ".") != ".":
            raise ValueError(f"{odd[0] if odd else 'dimension_separator'} is not read here")
        shape, chunks = _lengths(header["shape"]), _lengths(header["chunks"])
        if len(shape) != len(chunks) or header["dtype"] not in DTYPES:
            raise ValueError(f"dtype {shown(header['dtype'])} in chunks of {list(chunks)}")
        return cls(folder, key, shape, chunks, DTYPES[header["dtype"]])

    def read(self, layer: int | None = None) -> torch.Tensor:
        first = range(self.shape[0]) if layer is None else range(layer, layer + 1)
        whole = torch.empty((len(first), *self.shape[1:]), dtype=self.dtype)
        grid = [ceil(length / chunk) for length, chunk in zip(self.shape, self.chunks, strict=True)]
        grid[0] = 1 + (first[-1] // self.chunks[0])
        for place in product(range(first[0] // self.chunks[0], grid[0]), *map(range, grid[1:])):
            chunk = self._chunk(place)
            starts = [index * size for index, size in zip(place, self.chunks, strict=True)]
            source, target = [], []
            for axis, (start, size) in enumerate(zip(starts, self.chunks, strict=True)):
                low, high = (first[0], first[-1] + 1) if axis == 0 else (0, self.shape[axis])
                begin, end = max(start, low), min(start + size, high)
                source.append(slice(begin - start, end - start))
                target.append(slice(begin - low, end - low))
            whole[tuple(target)] = chunk[tuple(source)]
        return whole if layer is None else whole[0]

    def _chunk(self, place: tuple[int, ...]) -> torch.Tensor:
        """Return a chunk, which is whole also at an edge of the array, where it reaches beyond."""
        name = _name(place)
        size_bytes = prod(self.chunks) * self.dtype.itemsize
        try:
            path = contained(self.folder, f"{self.key}/{name}")
            if size_of(path) != size_bytes:
                raise ValueError(f"{size_of(path)} bytes, not {size_bytes}")
            content = np.fromfile(path, dtype=np.uint8)
        except FileNotFoundError:
            # zarr would take it for zeros
            raise StageError(
                f"{self.folder} lacks the file {self.key}/{name}; get the checkpoint again"
            ) from None
        except (OSError, ValueError) as error:
            raise StageError(
                f"{self.folder}/{self.key}/{name} cannot be read ({shown(error)}); "
                f"get the checkpoint again"
            ) from error
        return torch.from_numpy(content).view(self.dtype).view(self.chunks)


def _name(place: tuple[int, ...]) -> str:
    return ".".join(map(str, place))


def _lengths(value: Any) -> tuple[int, ...]:
    is_shape = isinstance(value, list) and 0 < len(value) <= MAX_DIMS
    if not is_shape or not all(type(length) is int and length > 0 for length in value):
        raise ValueError(f"{shown(value)} is no shape")
    return tuple(value)


def write_header(
    folder: Path, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Make an array's folder, without its chunks."""
    folder.mkdir()
    header = {
        "zarr_format": 2,
        "shape": list(shape),
        "chunks": list(chunks),
        "dtype": SPELLED[dtype],
        "order": "C",
        "compressor": None,
        "filters": None,
        "fill_value": None,
    }
    (folder / HEADER).write_text(json.dumps(header, indent=4))


def write_chunk(folder: Path, place: tuple[int, ...], content: torch.Tensor) -> None:
    """Write the chunk at a place of the grid."""
    as_bytes(content).tofile(folder / _name(place))
