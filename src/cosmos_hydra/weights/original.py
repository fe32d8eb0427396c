"""Weights as the original code keeps them: `model.pt` of torch.save, names after `net.`.

The tensors are those of diffusers' layout under other names (its conversion script has the same
table). The file is mapped into memory, so that no more of it is read than is used.
"""

import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import set_default_mmap_options, skip_data

from cosmos_hydra.errors import StageError
from cosmos_hydra.pth import plain, read_table
from cosmos_hydra.reading import shown
from cosmos_hydra.weights.source import Entry, Source, WholeTensor

FILE = "model.pt"
PREFIX = "net."
# where training code puts the weights among other things
NESTED = ("model", "module", "state_dict")
SEQUENCE = "pos_embedder.seq"  # 0, 1, 2, ...: recomputed
# of the training loss, and notes of Transformer Engine: no part of the network
IGNORED = ("logvar.", SEQUENCE)
IGNORED_ENDING = "_extra_state"

# outside the blocks, by diffusers' names
OUTSIDE = {
    "patch_embed.proj.weight": "x_embedder.proj.1.weight",
    "time_embed.t_embedder.linear_1.weight": "t_embedder.1.linear_1.weight",
    "time_embed.t_embedder.linear_2.weight": "t_embedder.1.linear_2.weight",
    "time_embed.norm.weight": "affline_norm.weight",
    "learnable_pos_embed.pos_emb_t": "extra_pos_embedder.pos_emb_t",
    "learnable_pos_embed.pos_emb_h": "extra_pos_embedder.pos_emb_h",
    "learnable_pos_embed.pos_emb_w": "extra_pos_embedder.pos_emb_w",
    "norm_out.linear_1.weight": "final_layer.adaLN_modulation.1.weight",
    "norm_out.linear_2.weight": "final_layer.adaLN_modulation.2.weight",
    "proj_out.weight": "final_layer.linear.weight",
}
_ATTENTION = {
    "to_q": "to_q.0",
    "norm_q": "to_q.1",
    "to_k": "to_k.0",
    "norm_k": "to_k.1",
    "to_v": "to_v.0",
    "to_out.0": "to_out.0",
}
# in a block: its three parts are numbered
BLOCK = {
    **{
        f"attn{n + 1}.{name}.weight": f"blocks.{n}.block.attn.{original}.weight"
        for n in (0, 1)
        for name, original in _ATTENTION.items()
    },
    "ff.net.0.proj.weight": "blocks.2.block.layer1.weight",
    "ff.net.2.weight": "blocks.2.block.layer2.weight",
    **{
        f"norm{n + 1}.linear_{linear}.weight": f"blocks.{n}.adaLN_modulation.{linear}.weight"
        for n in (0, 1, 2)
        for linear in (1, 2)
    },
}
_OUTSIDE = {original: name for name, original in OUTSIDE.items()}
_BLOCK = {original: name for name, original in BLOCK.items()}


def original_name(name: str) -> str:
    """Return the original's name, without its prefix, of a weight that has diffusers' name."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, number, part = name.split(".", 2)
    return f"blocks.block{number}.{BLOCK[part]}"


def diffusers_name(original: str) -> str | None:
    """Return diffusers' name of a weight that has the original's; None when there is none."""
    if original in _OUTSIDE:
        return _OUTSIDE[original]
    block, _, part = original.removeprefix("blocks.block").partition(".")
    is_block = original.startswith("blocks.block") and block.isdecimal() and part in _BLOCK
    return f"transformer_blocks.{block}.{_BLOCK[part]}" if is_block else None


def is_ignored(original: str) -> bool:
    """Return whether a key of a checkpoint is no weight of the network."""
    return original.startswith(IGNORED) or original.endswith(IGNORED_ENDING)


class Original(Source):
    """A file of the original code, the weights at its top or nested once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            table = _unnested(read_table(path))
        except (OSError, ValueError) as error:
            raise StageError(f"{path} cannot be read ({shown(error)})") from error
        self.tensors: dict[str, torch.Tensor] = {}
        for key, value in table.items():
            original = key.removeprefix(PREFIX)
            if is_ignored(original):
                continue
            name = diffusers_name(original)
            if name is None or not isinstance(value, torch.Tensor):
                self.problems.append(f"unexpected {shown(key)}")
            elif name in self.tensors:
                self.problems.append(f"{shown(original)} twice, with {PREFIX} and without")
            else:
                self._add(name, key, value)

    def _add(self, name: str, key: str, tensor: torch.Tensor) -> None:
        try:
            self.tensors[name] = plain(tensor)
        except ValueError as error:
            self.problems.append(f"{key} is {error}")
            return
        self.entries[name] = Entry(tuple(tensor.shape), tensor.dtype, key)

    def get(self, name: str) -> WholeTensor:
        return self.tensors[name]

    def label_of(self, name: str) -> str:
        return f"{PREFIX}{original_name(name)}"


def _unnested(table: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = [table[key] for key in NESTED if isinstance(table.get(key), Mapping)]
    return inner[0] if inner else table


def write_original(
    folder: Path, source: Source, shapes: dict[str, torch.Size], dtypes: dict[str, torch.dtype]
) -> list[str]:
    """Write `model.pt`, a weight in memory at a time, and return the names of the files."""
    sequence = max(shapes[name][0] for name in shapes if "pos_emb_" in name)
    with FakeTensorMode():
        table = {
            f"{PREFIX}{original_name(name)}": torch.empty(shape, dtype=dtypes[name])
            for name, shape in shapes.items()
        }
        table[f"{PREFIX}{SEQUENCE}"] = torch.empty(sequence, dtype=torch.float32)
    path = folder / FILE
    # first the file with room for every tensor, then the tensors through a shared mapping
    with skip_data(materialize_fake_tensors=True):
        torch.save(table, path)
    with path.open("r+b") as file:
        # or a full disk would end the process when the mapping is written
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    with set_default_mmap_options(mmap.MAP_SHARED):
        written = read_table(path)
    written[f"{PREFIX}{SEQUENCE}"].copy_(torch.arange(sequence))
    for name in shapes:
        written[f"{PREFIX}{original_name(name)}"].copy_(source.read(name))
    return [FILE]
