"""Write a run's weights as a diffusers folder, one weight in memory at a time.

A safetensors file is a header of names, dtypes and places, then the bytes
(https://github.com/huggingface/safetensors#format); the library writes whole dicts alone.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from cosmos_hydra.config import ExportDtype
from cosmos_hydra.weights.diffusers import WEIGHTS
from cosmos_hydra.weights.tensors import Read

# torch's dtype, and its name in a header
DTYPES = {ExportDtype.bf16: (torch.bfloat16, "BF16"), ExportDtype.fp32: (torch.float32, "F32")}
ALIGNMENT = 8
Shapes = dict[str, torch.Size]


@dataclass(frozen=True)
class Written:
    """What was written."""

    files: tuple[str, ...]
    size_bytes: int


def write_weights(
    folder: Path, shapes: Shapes, read: Read, dtype: ExportDtype, shard_gb: float
) -> Written:
    """Write safetensors files of at most `shard_gb`, or of one weight, and an index of several."""
    element_bytes = DTYPES[dtype][0].itemsize
    sizes = {name: element_bytes * shape.numel() for name, shape in shapes.items()}
    shards = list(_shards(sizes, shard_gb * 1e9))
    stem = WEIGHTS.removesuffix(".safetensors")
    files = [f"{stem}-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    files = [WEIGHTS] if len(shards) == 1 else files
    for file, names in zip(files, shards, strict=True):
        _write_file(folder / file, {name: shapes[name] for name in names}, read, dtype)
    total_bytes = sum(sizes.values())
    if len(shards) > 1:
        places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {
            "metadata": {"total_size": total_bytes},
            "weight_map": dict(sorted(places.items())),
        }
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return Written(tuple(files), total_bytes)


def _shards(sizes: dict[str, int], limit_bytes: float) -> Iterator[list[str]]:
    """Yield the names of each file, in the order of the model."""
    shard: list[str] = []
    used_bytes = 0
    for name, size_bytes in sizes.items():
        if shard and used_bytes + size_bytes > limit_bytes:
            yield shard
            shard, used_bytes = [], 0
        shard.append(name)
        used_bytes += size_bytes
    yield shard


def _write_file(path: Path, shapes: Shapes, read: Read, dtype: ExportDtype) -> None:
    kind, label = DTYPES[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + kind.itemsize * shape.numel()
        header[name] = {"dtype": label, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            # numpy has no bfloat16
            read(name, shape).to(kind).contiguous().flatten().view(torch.uint8).numpy().tofile(file)
