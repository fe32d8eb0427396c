"""Write weights as a diffusers folder, one weight in memory at a time.

A safetensors file is a header of names, dtypes and places, then the bytes
(https://github.com/huggingface/safetensors#format); the library writes whole dicts alone.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from cosmos_hydra.weights.diffusers import DTYPES, WEIGHTS
from cosmos_hydra.weights.source import Shapes, Source, as_bytes

# what a header calls a dtype
LABELS = {dtype: label for label, dtype in DTYPES.items()}
ALIGNMENT = 8
Dtypes = dict[str, torch.dtype]


def write_diffusers(
    folder: Path, source: Source, shapes: Shapes, dtypes: Dtypes, shard_gb: float
) -> list[str]:
    """Write safetensors files of at most `shard_gb`, or of one weight, and an index of several.

    Returns the names of the files.
    """
    sizes = {name: dtypes[name].itemsize * shape.numel() for name, shape in shapes.items()}
    shards = list(_shards(sizes, shard_gb * 1e9))
    stem = WEIGHTS.removesuffix(".safetensors")
    files = [f"{stem}-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    files = [WEIGHTS] if len(shards) == 1 else files
    for file, names in zip(files, shards, strict=True):
        _write_file(folder / file, source, {name: shapes[name] for name in names}, dtypes)
    if len(shards) > 1:
        places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": dict(sorted(places.items())),
        }
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return files


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


def _write_file(path: Path, source: Source, shapes: Shapes, dtypes: Dtypes) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + dtypes[name].itemsize * shape.numel()
        label = LABELS[dtypes[name]]
        header[name] = {"dtype": label, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            as_bytes(source.read(name).to(dtypes[name])).tofile(file)
