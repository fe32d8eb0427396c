"""A tensor that ranks may share, and the part of it that this rank holds."""

from typing import Any

import torch
from torch.distributed.tensor import DTensor


def local(tensor: Any) -> torch.Tensor:
    """Return what this rank holds of a tensor; changing it changes the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def with_local(like: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Return a tensor placed like another one, of which this rank holds `part`, on any device."""
    if not isinstance(like, DTensor):
        return part
    return DTensor(part, like._spec, requires_grad=False)
