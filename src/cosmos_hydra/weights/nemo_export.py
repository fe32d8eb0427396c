"""Write weights as the folder that NeMo's recipes start from: Megatron's zarr format."""

import json
from pathlib import Path

import torch

from cosmos_hydra.weights.nemo import LAYERS, LAYOUTS, PREFIX, key_of
from cosmos_hydra.weights.original import OUTSIDE, SEQUENCE
from cosmos_hydra.weights.source import Shapes, Source
from cosmos_hydra.weights.zarr import write_chunk, write_header

METADATA = "metadata.json"
COMMON = "common.pt"


def write_nemo(
    folder: Path, source: Source, shapes: Shapes, dtypes: dict[str, torch.dtype], tp: int
) -> list[str]:
    """Write a checkpoint, a layer of an array in memory at a time, and return what was written.

    Chunks are the parts of `tp` ranks, as Megatron writes them; any number of ranks reads them.
    """
    for name in OUTSIDE:
        _write_whole(folder / key_of(name), source.read(name).to(dtypes[name]))
    sequence = torch.arange(max(shapes[name][0] for name in shapes if "pos_emb_" in name))
    _write_whole(folder / f"{PREFIX}{SEQUENCE}", sequence.float())
    layers = sum(name.endswith(".attn1.norm_q.weight") for name in shapes)
    head_dim = shapes["transformer_blocks.0.attn1.norm_q.weight"][0]
    for key, layout in LAYOUTS.items():
        for number in range(layers):
            names = [f"transformer_blocks.{number}.{name}" for name in layout.names]
            parts = [source.read(name).to(dtypes[name]) for name in names]
            whole = layout.join(parts, head_dim)
            _write_layer(folder / f"{LAYERS}{key}", whole, (number, layers), layout.tp_axis, tp)
    formats = {"sharded_backend": "zarr", "common_backend": "torch"}
    versions = {f"{name}_version": 1 for name in formats}
    (folder / METADATA).write_text(json.dumps(formats | versions))
    torch.save({}, folder / COMMON)  # of a training state, which weights alone lack
    return sorted(path.name for path in folder.iterdir())


def _write_whole(folder: Path, whole: torch.Tensor) -> None:
    write_header(folder, whole.shape, whole.shape, whole.dtype)
    write_chunk(folder, (0,) * whole.dim(), whole)


def _write_layer(
    folder: Path, whole: torch.Tensor, layer: tuple[int, int], tp_axis: int | None, tp: int
) -> None:
    number, layers = layer
    pieces = [whole] if tp_axis is None else whole.chunk(tp, dim=tp_axis)
    if number == 0:
        write_header(folder, (layers, *whole.shape), (1, *pieces[0].shape), whole.dtype)
    for rank, piece in enumerate(pieces):
        place = [rank if axis == tp_axis else 0 for axis in range(whole.dim())]
        write_chunk(folder, (number, *place), piece)
