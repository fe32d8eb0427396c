"""NeMo's layout of the weights: layers stacked, projections joined, adaLN dense.

Keys are `module.decoder.layers.NAME` with the layers as first axis, and `module.NAME` outside them.
In a layer, the rows of queries, keys and values alternate by head (Megatron's convention), and the
three low-rank modulations are one: the first matrices below each other, the second ones on the
diagonal of a dense matrix. NeMo trains what lies beside that diagonal; such weights have no place
in the other formats, so they are refused.
Legend: L layers, D model width, K head dim, I inputs.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch

from cosmos_hydra.errors import StageError
from cosmos_hydra.reading import listed, shown
from cosmos_hydra.weights.original import OUTSIDE, is_ignored
from cosmos_hydra.weights.source import Entry, Source, WholeTensor

PREFIX = "module."
LAYERS = "module.decoder.layers."
HEAD = f"{LAYERS}full_self_attention.q_layernorm.weight"  # [L, K]
MAX_LAYERS = 1000
Parts = list[torch.Tensor]


class Array(Protocol):
    """An array on disk, by either of NeMo's storage formats."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def read(self, layer: int | None = None) -> torch.Tensor:
        """Return the whole array, or one index of its first axis. Raises: StageError."""


def _join_heads(parts: Parts, K: int) -> torch.Tensor:
    return torch.stack([part.unflatten(0, (-1, K)) for part in parts], dim=1).flatten(0, 2)


def _split_heads(whole: torch.Tensor, count: int, K: int) -> Parts:
    return [part.flatten(0, 1) for part in whole.unflatten(0, (-1, count, K)).unbind(1)]


def _join_rows(parts: Parts, K: int) -> torch.Tensor:
    return torch.cat(parts)


def _split_rows(whole: torch.Tensor, count: int, K: int) -> Parts:
    return list(whole.chunk(count))


def _join_diagonal(parts: Parts, K: int) -> torch.Tensor:
    return torch.block_diag(*parts)


def _split_diagonal(whole: torch.Tensor, count: int, K: int) -> Parts:
    rows = whole.chunk(count)
    return [row.chunk(count, dim=1)[index] for index, row in enumerate(rows)]


@dataclass(frozen=True)
class Layout:
    """How one array of a layer is made of weights, by diffusers' names in a block."""

    names: tuple[str, ...]
    join: Callable[[Parts, int], torch.Tensor] = _join_rows
    split: Callable[[torch.Tensor, int, int], Parts] = _split_rows
    # axis that tensor parallelism cuts; None = every rank has all of it
    tp_axis: int | None = None


def _weights(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.weight" for name in names)


_HEADS = (_join_heads, _split_heads, 0)
ADALN = "adaLN.adaLN_modulation.2.weight"
LAYOUTS = {
    "full_self_attention.linear_qkv.weight": Layout(
        _weights("attn1.to_q", "attn1.to_k", "attn1.to_v"), *_HEADS
    ),
    "full_self_attention.linear_proj.weight": Layout(_weights("attn1.to_out.0"), tp_axis=1),
    "full_self_attention.q_layernorm.weight": Layout(_weights("attn1.norm_q")),
    "full_self_attention.k_layernorm.weight": Layout(_weights("attn1.norm_k")),
    "cross_attention.linear_q.weight": Layout(_weights("attn2.to_q"), tp_axis=0),
    "cross_attention.linear_kv.weight": Layout(_weights("attn2.to_k", "attn2.to_v"), *_HEADS),
    "cross_attention.linear_proj.weight": Layout(_weights("attn2.to_out.0"), tp_axis=1),
    "cross_attention.q_layernorm.weight": Layout(_weights("attn2.norm_q")),
    "cross_attention.k_layernorm.weight": Layout(_weights("attn2.norm_k")),
    "mlp.linear_fc1.weight": Layout(_weights("ff.net.0.proj"), tp_axis=0),
    "mlp.linear_fc2.weight": Layout(_weights("ff.net.2"), tp_axis=1),
    "adaLN.adaLN_modulation.1.weight": Layout(
        _weights("norm1.linear_1", "norm2.linear_1", "norm3.linear_1")
    ),
    ADALN: Layout(
        _weights("norm1.linear_2", "norm2.linear_2", "norm3.linear_2"),
        _join_diagonal,
        _split_diagonal,
    ),
}
# of our own engine=nemo: as NeMo's, but the three modulations stay apart
APART = "norm1.linear_1.weight"
OWN_LAYOUTS = {
    **{key: layout for key, layout in LAYOUTS.items() if not key.startswith("adaLN.")},
    **{name: Layout((name,)) for key in LAYOUTS if "adaLN" in key for name in LAYOUTS[key].names},
}
Layouts = Mapping[str, Layout]
Places = dict[str, tuple[str, int]]


def _places(layouts: Layouts) -> Places:
    """Return for each weight in a block the array it is in, and its place there."""
    return {
        name: (key, i) for key, layout in layouts.items() for i, name in enumerate(layout.names)
    }


PLACES = _places(LAYOUTS)


def key_of(name: str, places: Places = PLACES) -> str:
    """Return the key of the array that holds a weight of diffusers' name."""
    if name in OUTSIDE:
        return f"{PREFIX}{OUTSIDE[name]}"
    return f"{LAYERS}{places[name.split('.', 2)[2]][0]}"


def is_used(key: str) -> bool:
    """Return whether an array is part of the network; others are not looked at."""
    return key.startswith(PREFIX) and not is_ignored(key.removeprefix(PREFIX))


class Nemo(Source):
    """The arrays of a checkpoint; of a stacked one no more than a layer is in memory."""

    def __init__(self, place: Path, arrays: Mapping[str, Array], problems: list[str]) -> None:
        super().__init__(place, problems=list(problems))
        self.arrays = arrays
        self.layouts = OWN_LAYOUTS if f"{LAYERS}{APART}" in arrays else LAYOUTS
        self.places = _places(self.layouts)
        head = arrays.get(HEAD)
        self.head_dim = head.shape[-1] if head and head.shape else 1
        known = {key_of(name): name for name in OUTSIDE}
        for key, array in arrays.items():
            is_stacked = key.startswith(LAYERS)
            layout = self.layouts.get(key.removeprefix(LAYERS)) if is_stacked else None
            if layout is not None:
                self._add_layers(key, layout, array)
            elif key in known:
                self.entries[known[key]] = Entry(array.shape, array.dtype, key)
            else:
                self.problems.append(f"unexpected {shown(key)}")
        # of one layer, q, k and v are asked for in turn
        self._layer = lru_cache(maxsize=4)(self._read_layer)

    def _add_layers(self, key: str, layout: Layout, array: Array) -> None:
        shape = torch.Size(array.shape)
        try:
            with torch.device("meta"):
                whole = torch.empty(shape[1:])
                parts = layout.split(whole, len(layout.names), self.head_dim)
            shapes = [tuple(part.shape) for part in parts]
            joined = layout.join(parts, self.head_dim).shape
        except (IndexError, RuntimeError):
            joined = None
        if not shape or shape[0] > MAX_LAYERS or joined != shape[1:]:
            self.problems.append(f"{key} is {list(shape)}, which is no stack of layers")
            return
        for number in range(shape[0]):
            for name, part in zip(layout.names, shapes, strict=True):
                whole_name = f"transformer_blocks.{number}.{name}"
                label = f"{key}, {whole_name} in it,"
                self.entries[whole_name] = Entry(part, array.dtype, label)

    def get(self, name: str) -> WholeTensor:
        if name in OUTSIDE:
            return self.arrays[key_of(name)].read()
        _, number, part = name.split(".", 2)
        key, index = self.places[part]
        return self._layer(key, int(number))[index]

    def _read_layer(self, key: str, number: int) -> Parts:
        whole, layout = self.arrays[f"{LAYERS}{key}"].read(number), self.layouts[key]
        return layout.split(whole, len(layout.names), self.head_dim)

    def label_of(self, name: str) -> str:
        return f"{name} (in {key_of(name, self.places)})"

    def check(self, wanted: dict[str, torch.Size]) -> None:
        """Raise StageError as every format does, and when adaLN is not on its diagonal."""
        super().check(wanted)
        trained = [
            f"layer {number}: {beside:.2g} beside a diagonal of {largest:.2g}"
            for number, (beside, largest) in enumerate(self._beside_diagonal())
            if beside
        ]
        if trained:
            raise StageError(
                f"{self.place} has a dense adaLN, which NeMo trained beside its diagonal "
                f"({listed(trained[:3])}; {len(trained)} layers in all); only NeMo can hold that: "
                f"start from the released weights instead"
            )

    def _beside_diagonal(self) -> Iterator[tuple[float, float]]:
        """Yield for each layer the largest number beside the diagonal, and the largest of all."""
        if self.layouts is OWN_LAYOUTS:
            return
        array, layout = self.arrays[f"{LAYERS}{ADALN}"], LAYOUTS[ADALN]
        for number in range(array.shape[0]):
            whole = array.read(number)
            largest = whole.abs().max().item()
            for part in layout.split(whole, len(layout.names), self.head_dim):
                part.zero_()  # in the copy that was read
            yield whole.abs().max().item(), largest
