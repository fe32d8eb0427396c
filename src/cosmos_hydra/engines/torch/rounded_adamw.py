"""AdamW's update with moments in bfloat16, rounded at random: written for one pass over memory.

In eager mode each line is a pass; compiled, all of them are one kernel, since the random bits are a
function of a number's place and not of a generator. Names: N numbers of a tensor, flat.
"""

from collections.abc import Callable

import torch

# multipliers and shifts of lowbias32, by C. Wellons (hash-prospector, public domain), as int32
SHIFTS = (16, 15, 16)
FACTORS = (0x7FEB352D, 0x846CA68B - (1 << 32))
KEEP_HIGH, KEEP_LOW = -0x10000, 0xFFFF  # of the 32 bits of a float32, which bfloat16 has

Update = Callable[..., None]


def update(
    weight_N: torch.Tensor,
    gradient_N: torch.Tensor,
    mean_N: torch.Tensor,
    square_N: torch.Tensor,
    key: torch.Tensor,
    factors: torch.Tensor,
) -> None:
    """Change float32 weights and bfloat16 moments in place (arXiv 1711.05101, algorithm 2).

    `key`: int32, of no dimension. `factors`: float32, from `factors_of`; on the weights' device.
    """
    share1, share2, decay, rate, correction, eps = factors.unbind()
    gradient_N = gradient_N.float()
    exact_mean_N = mean_N.float().lerp(gradient_N, share1)
    exact_square_N = square_N.float().lerp(gradient_N.square(), share2)
    bits_N = random_bits(weight_N.numel(), key)
    mean_N.copy_(rounded(exact_mean_N, bits_N & KEEP_LOW))
    square_N.copy_(rounded(exact_square_N, (bits_N >> 16) & KEEP_LOW))
    deviation_N = exact_square_N.sqrt() * correction + eps
    weight_N.copy_(weight_N * decay - rate * exact_mean_N / deviation_N)


def factors_of(
    step: int, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> list[float]:
    """Return the numbers of the update to `step`, counted from 1, that all numbers share."""
    beta1, beta2 = betas
    correction = (1 - beta2**step) ** -0.5
    return [1 - beta1, 1 - beta2, 1 - lr * weight_decay, lr / (1 - beta1**step), correction, eps]


def rounded(exact_N: torch.Tensor, random_N: torch.Tensor) -> torch.Tensor:
    """Return float32 numbers in bfloat16, up or down with a probability that makes them right.

    `random_N`: int32, of 0 to 65535. Adding low bits and cutting them off carries as often as due.
    """
    carried_N = exact_N.view(torch.int32) + random_N
    return (carried_N & KEEP_HIGH).view(torch.float32).bfloat16()


def random_bits(count: int, key: torch.Tensor) -> torch.Tensor:
    """Return `count` int32 numbers of 32 bits each, a function of the key and of their place."""
    bits_N = torch.arange(count, dtype=torch.int32, device=key.device) ^ key
    for shift, factor in zip(SHIFTS, (*FACTORS, None), strict=True):
        # a shift of an int32 repeats its sign
        bits_N = bits_N ^ ((bits_N >> shift) & (0xFFFFFFFF >> shift))
        bits_N = bits_N if factor is None else bits_N * factor
    return bits_N


def compiled() -> Update:
    """Return `update` as one kernel, made once for tensors of any size."""
    return torch.compile(update, dynamic=True, fullgraph=True)
