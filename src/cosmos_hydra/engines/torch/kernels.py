"""Which of PyTorch's attention kernels runs: the asked one, or the best that works here.

PyTorch's own first choice on Hopper takes twice the time of cuDNN's.
"""

import warnings
from collections.abc import Callable
from functools import cache, partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from cosmos_hydra.config import Attention, Config, Precision
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
    return partial(_attend, BACKENDS[attention])


def _preferred(device: torch.device) -> list[Attention]:
    is_hopper = device.type == "cuda" and torch.cuda.get_device_capability(device) >= HOPPER
    return [kernel for kernel in BACKENDS if is_hopper or kernel is not Attention.cudnn]


def _attend(
    backend: SDPBackend, q_BNLK: torch.Tensor, k_BNLK: torch.Tensor, v_BNLK: torch.Tensor
) -> torch.Tensor:
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(q_BNLK, k_BNLK, v_BNLK)


@cache
def _works(attention: Attention, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    x_BNLK = torch.zeros(1, 1, 8, head_dim, dtype=dtype, device=device, requires_grad=True)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")  # they say why a kernel does not run
            kernel_of(attention)(x_BNLK, x_BNLK, x_BNLK).sum().backward()
    except RuntimeError:
        return False
    return True
