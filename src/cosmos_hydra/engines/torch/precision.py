"""Which dtype the network computes in; weights, noise and loss stay float32."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from cosmos_hydra.config import Precision

Autocast = Callable[[], AbstractContextManager[Any]]


def effective_precision(precision: Precision, device: torch.device) -> Precision:
    """Return bf16 or fp32; `auto` is bf16 on a GPU and fp32 on a CPU."""
    if precision is not Precision.auto:
        return precision
    return Precision.bf16 if device.type == "cuda" else Precision.fp32


def autocast_for(precision: Precision, device: torch.device) -> Autocast:
    """Return a function that makes the context in which the network runs."""
    if effective_precision(precision, device) is Precision.fp32:
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
