"""Share the tokens of a clip among ranks, from the patch embedding to the output projection.

Every rank sees the whole latent and the whole prediction; in between it holds its own tokens. All
parameters used there get gradients of these tokens only, whose sum over the ranks is the gradient.
Legend: B batch, L tokens, l tokens of this rank, D width, K head dim.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh


class Share:
    """The tokens of this rank among `size` ranks of a group; rank i has the i-th part."""

    def __init__(self, place: int, size: int) -> None:
        self.place, self.size = place, size

    @classmethod
    def of_rank(cls, mesh: DeviceMesh) -> "Share":
        """Return this rank's share among the ranks of a mesh with one axis."""
        return cls(mesh.get_local_rank(), mesh.size())

    def of(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """Return this rank's part along a dimension."""
        return x.chunk(self.size, dim)[self.place]


def share_tokens(
    transformer: nn.Module, tokens: Share, rotary: Share, group: dist.ProcessGroup
) -> None:
    """Make each rank of `group` work on its tokens.

    `rotary` is the share that attention sees: under sequence parallelism more than `tokens`, since
    tensor parallelism gathers them before the projections.
    """

    def cut_patches(module: nn.Module, inputs: Any, x_BFHWD: torch.Tensor) -> torch.Tensor:
        # the caller flattens the middle three dimensions again
        return tokens.of(x_BFHWD.flatten(1, 3), 1)[:, None, None]

    def cut_positions(module: nn.Module, inputs: Any, x_BLD: torch.Tensor) -> torch.Tensor:
        return tokens.of(x_BLD, 1)

    def cut_rotary(
        module: nn.Module, inputs: Any, tables_LK: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cos_LK, sin_LK = tables_LK
        return rotary.of(cos_LK, 0), rotary.of(sin_LK, 0)

    def gather(module: nn.Module, inputs: Any, x_BlD: torch.Tensor) -> torch.Tensor:
        return gather_tokens(x_BlD, group)

    hooks: dict[str, Any] = {
        "patch_embed": cut_patches,
        "learnable_pos_embed": cut_positions,
        "rope": cut_rotary,
        "proj_out": gather,
    }
    for name, hook in hooks.items():
        transformer.get_submodule(name).register_forward_hook(hook)


def gather_tokens(x_BlD: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Return all tokens, those of rank i in the i-th place; called by every rank of `group`."""
    return _Gather.apply(x_BlD, group)


class _Gather(torch.autograd.Function):
    """All tokens to every rank. Each rank then computes the same loss, so that the gradient of
    its own tokens is already whole: nothing is summed on the way back.
    """

    @staticmethod
    def forward(ctx: Any, x_BlD: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        parts = [torch.empty_like(x_BlD) for _ in range(group.size())]
        dist.all_gather(parts, x_BlD.contiguous(), group=group)
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, gradient_BLD: torch.Tensor) -> tuple[torch.Tensor, None]:
        return Share(ctx.group.rank(), ctx.group.size()).of(gradient_BLD, 1), None
