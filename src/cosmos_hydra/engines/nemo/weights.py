"""How the parameters of MegatronTransformer relate to weights by diffusers' names.

In a block they are arrays of NeMo's layout (weights/nemo.py): joined projections, of which each tp
rank has some heads. The modulations alone are kept as three pairs of matrices: NeMo's dense one
learns what no other format can hold. Outside the blocks, names and shapes are diffusers' own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.distributed.fsdp.src.megatron_fsdp.uneven_dtensor import (
    gather_uneven_dtensor_to_full_tensor,
)
from megatron.core.utils import (
    make_sharded_tensor_for_checkpoint,
    make_tp_sharded_tensor_for_checkpoint,
)
from torch import nn
from torch.distributed.tensor import DTensor

from cosmos_hydra.config import ModelConfig
from cosmos_hydra.models.transformer import build_transformer
from cosmos_hydra.weights.nemo import LAYERS, OWN_LAYOUTS, PREFIX, Layout, key_of
from cosmos_hydra.weights.source import Shapes

BLOCK = "decoder.layers."
WHOLE = Layout(())


@dataclass(frozen=True)
class Place:
    """Where a parameter's content comes from: weights by diffusers' names, and how they join."""

    names: tuple[str, ...]
    layout: Layout
    # key of a NeMo checkpoint, and of its first axis the layer; None = no such axis
    key: str
    layer: int | None = None


def place_of(name: str) -> Place:
    """Return the place of a parameter of MegatronTransformer."""
    if not name.startswith(BLOCK):
        return Place((name,), WHOLE, key_of(name))
    number, part = name.removeprefix(BLOCK).split(".", 1)
    layout = OWN_LAYOUTS[part]
    names = tuple(f"transformer_blocks.{number}.{weight}" for weight in layout.names)
    return Place(names, layout, f"{LAYERS}{part}", int(number))


def shapes_of(model: ModelConfig) -> Shapes:
    """Return the shape of every weight by diffusers' names."""
    with torch.device("meta"):
        transformer = build_transformer(model)
    return {name: parameter.shape for name, parameter in transformer.named_parameters()}


def mark_parameters(transformer: nn.Module, is_sequence_parallel: bool) -> None:
    """Say of each parameter how Megatron's optimizer and gradient sums have to take it.

    Between tokens that are shared, every parameter that is not split gets part of its gradient.
    """
    for name, parameter in transformer.named_parameters():
        axis = place_of(name).layout.tp_axis
        attributes = {
            "tensor_model_parallel": axis is not None,
            "partition_dim": -1 if axis is None else axis,
            "partition_stride": 1,
            "sequence_parallel": axis is None and is_sequence_parallel,
        }
        for attribute, value in attributes.items():
            setattr(parameter, attribute, value)


@torch.no_grad()
def fill(transformer: nn.Module, head_dim: int, read: Callable[[str], torch.Tensor]) -> None:
    """Fill the parameters, or this tp rank's parts, from whole weights by diffusers' names."""
    rank = parallel_state.get_tensor_model_parallel_rank()
    size = parallel_state.get_tensor_model_parallel_world_size()
    for name, parameter in transformer.named_parameters():
        place = place_of(name)
        if place.layer is None:
            whole = read(name)
        else:
            whole = place.layout.join([read(weight) for weight in place.names], head_dim)
        axis = place.layout.tp_axis
        parameter.copy_(whole if axis is None else whole.chunk(size, axis)[rank])


def whole_weights(
    transformer: nn.Module,
    head_dim: int,
    of: Callable[[nn.Parameter], torch.Tensor] = nn.Parameter.detach,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield whole weights, or what `of` makes of parameters, by diffusers' names.

    Called by every tp rank: they gather their parts, a parameter at a time.
    """
    for name, parameter in transformer.named_parameters():
        place = place_of(name)
        whole = _gathered(of(parameter), place.layout.tp_axis)
        if place.layer is None:
            yield name, whole
        else:
            parts = place.layout.split(whole, len(place.names), head_dim)
            yield from zip(place.names, parts, strict=True)


def sharded_state(transformer: nn.Module, prefix: str) -> dict[str, ShardedTensor]:
    """Return what Megatron saves and loads: this rank's parts, the layers stacked as in NeMo's.

    Keys on disk are NeMo's, with PREFIX; those of the returned table the parameters' own.
    """
    layers = cast(nn.ModuleList, transformer.get_submodule(BLOCK.removesuffix(".")))
    table = {}
    for name, parameter in transformer.named_parameters():
        place = place_of(name)
        offsets = [] if place.layer is None else [(0, place.layer, len(layers))]
        key = place.key.removeprefix(PREFIX)
        axis = place.layout.tp_axis
        if axis is None:
            part = make_sharded_tensor_for_checkpoint(parameter, f"{prefix}{key}", offsets)
        else:
            part = make_tp_sharded_tensor_for_checkpoint(
                parameter, f"{prefix}{key}", axis, prepend_offsets=offsets
            )
        table[f"{prefix}{name}"] = part
    return table


def _gathered(part: torch.Tensor, axis: int | None) -> torch.Tensor:
    if isinstance(part, DTensor):  # of Megatron-FSDP, over tp too; its parts differ in length
        return gather_uneven_dtensor_to_full_tensor(part).to_local()
    size = parallel_state.get_tensor_model_parallel_world_size()
    if axis is None or size == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(size)]
    group = parallel_state.get_tensor_model_parallel_group()
    dist.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts, dim=axis)
