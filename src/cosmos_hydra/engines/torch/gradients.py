"""Gradients across ranks: sums that FSDP does not know of, and the global norm.

FSDP sums over dp_shard, cp and dp_replicate. Over tp, parameters that are not split get gradients
of part of the tokens (sequence parallel) or of part of the heads (the q and k norms): their sum
over tp is the gradient.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from cosmos_hydra.engines.torch.mesh import Ranks
from cosmos_hydra.engines.torch.parts import local

HEAD_NORMS = ("norm_q.", "norm_k.")


def is_split_over_tp(parameter: nn.Parameter) -> bool:
    """Return whether each tp rank holds other values of a parameter."""
    mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
    return mesh is not None and "tp" in (mesh.mesh_dim_names or ())


def partial_over_tp(module: nn.Module, is_sequence_parallel: bool) -> list[nn.Parameter]:
    """Return the parameters whose gradients must be summed over tp."""
    return [
        parameter
        for name, parameter in module.named_parameters()
        if not is_split_over_tp(parameter)
        and (is_sequence_parallel or any(norm in name for norm in HEAD_NORMS))
    ]


def sum_over_tp(parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
    """Add up gradients over the tp ranks in place; called by every rank, in the same order."""
    assert ranks.mesh is not None
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    if gradients:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=ranks.mesh["tp"].get_group())
        for gradient, total in zip(
            gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True
        ):
            gradient.copy_(total.view_as(gradient))


def clip(module: nn.Module, limit: float | None, ranks: Ranks) -> float:
    """Scale gradients in place to a global norm of at most `limit`; return the norm before.

    The same value on every rank, since each adds up the same sums.
    """
    if ranks.mesh is None:
        bound = limit or float("inf")
        return float(nn.utils.clip_grad_norm_(module.parameters(), bound).item())
    squares = torch.zeros(2, dtype=torch.float32, device=ranks.device)
    gradients = [(p, local(p.grad)) for p in module.parameters() if p.grad is not None]
    for parameter, gradient in gradients:
        squares[int(is_split_over_tp(parameter))] += gradient.float().square().sum()
    dist.all_reduce(squares, group=ranks.mesh["dp_shard_cp"].get_group())
    dist.all_reduce(squares[1:], group=ranks.mesh["tp"].get_group())
    norm = squares.sum().sqrt()
    if limit is not None:
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        for _, gradient in gradients:
            gradient.mul_(scale)
    return norm.item()
