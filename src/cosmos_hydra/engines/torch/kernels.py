"""Which attention kernel runs: the asked one, or the best that works here.

All are PyTorch's but FlashAttention 4.
"""

import warnings
from collections.abc import Callable
from functools import cache, partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from cosmos_hydra.config import Attention, Config, Precision
from cosmos_hydra.engines.torch import flash4
from cosmos_hydra.engines.torch.degrees import degrees_of
from cosmos_hydra.engines.torch.precision import effective_precision
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.place import world_size

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
BACKENDS = {
    Attention.cudnn: SDPBackend.CUDNN_ATTENTION,
    Attention.flash: SDPBackend.FLASH_ATTENTION,
    Attention.efficient: SDPBackend.EFFICIENT_ATTENTION,
    Attention.math: SDPBackend.MATH,
}


def _attend(
    backend: SDPBackend, q_BNLK: torch.Tensor, k_BNLK: torch.Tensor, v_BNLK: torch.Tensor
) -> torch.Tensor:
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(q_BNLK, k_BNLK, v_BNLK)


# in the order in which auto tries them
KERNELS: dict[Attention, Kernel] = {Attention.flash4: flash4.attend}
KERNELS |= {attention: partial(_attend, backend) for attention, backend in BACKENDS.items()}
FROM_HOPPER_ON = {Attention.flash4, Attention.cudnn}
HOPPER = (9, 0)


def effective_attention(
    config: Config, device: torch.device, *, is_alone: bool = False
) -> Attention:
    """Return the kernel that runs, tried with the model's head size and precision.

    `is_alone`: whatever config.parallel says of training, this rank works on clips of its own.

    Raises: ConfigError when the asked one does not work here.
    """
    asked, head_dim = config.parallel.attention, config.model.head_dim
    precision = effective_precision(config.parallel.precision, device)
    dtype = torch.bfloat16 if precision is Precision.bf16 else torch.float32
    candidates = _preferred(device) if asked is Attention.auto else [asked]
    where = f"on {device} in {precision} with model.head_dim={head_dim}"
    if not is_alone and _needs_ring(config):
        # its parts are put together by what this one returns
        if Attention.flash in candidates and _works(Attention.flash, device, dtype, head_dim):
            return Attention.flash
        raise ConfigError(
            f"parallel.cp={config.parallel.cp} does not divide the heads of a rank, and "
            f"parallel.attention=flash, which that needs, does not run {where} or is not allowed; "
            f"use another degree, or parallel.precision=bf16 parallel.attention=auto"
        )
    if asked is Attention.flash4 and not flash4.is_installed():
        raise ConfigError(
            "parallel.attention=flash4 needs FlashAttention 4, which is not installed; run "
            "`pip install 'cosmos-hydra[flash4]'`, or use parallel.attention=auto"
        )
    works = [kernel for kernel in candidates if _works(kernel, device, dtype, head_dim)]
    if not works:
        raise ConfigError(
            f"parallel.attention={asked} does not run {where}; use parallel.attention=auto"
        )
    return works[0]


def _needs_ring(config: Config) -> bool:
    if world_size() == 1:
        return False
    degrees = degrees_of(config.parallel, world_size())
    return degrees.needs_ring(config.model.num_heads)


def kernel_of(attention: Attention) -> Kernel:
    """Return softmax attention without a mask, on [B, heads, tokens, head dim]."""
    return KERNELS[attention]


def _preferred(device: torch.device) -> list[Attention]:
    is_hopper = device.type == "cuda" and torch.cuda.get_device_capability(device) >= HOPPER
    left_out = set() if is_hopper else FROM_HOPPER_ON
    if not flash4.is_installed():
        left_out = left_out | {Attention.flash4}
    return [kernel for kernel in KERNELS if kernel not in left_out]


@cache
def _works(attention: Attention, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    x_BNLK = torch.zeros(1, 1, 8, head_dim, dtype=dtype, device=device, requires_grad=True)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")  # they say why a kernel does not run
            kernel_of(attention)(x_BNLK, x_BNLK, x_BNLK).sum().backward()
    # FlashAttention 4 asserts what it needs
    except (RuntimeError, AssertionError):
        return False
    return True
