"""AdamW whose moments take two bytes or one, with float32 weights and arithmetic.

In bfloat16 the second moment would stop following: one step changes it by less than half a digit.
So both moments are rounded up or down at random, right on average. In 8 bits each block of 256
numbers has its own scale (arXiv 2110.02861, by torchao); tensors that do not divide stay float32.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cosmos_hydra.config import OptimConfig, StatePrecision
from cosmos_hydra.engines.torch import rounded_adamw
from cosmos_hydra.engines.torch.parts import local, with_local
from cosmos_hydra.engines.torch.rounded_adamw import Update, factors_of
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.seeds import seed_of

BLOCK = 256  # numbers that share a scale
FEWEST = 4096  # of a tensor that is quantised
TINY = 1e-12  # torchao's smallest scale
MOMENTS = ("exp_avg", "exp_avg_sq")


class SmallMomentsAdamW(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101) with moments in `precision`.

    `part` tells ranks apart that hold different parts of the same tensors: copies must be rounded
    alike.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        optim: OptimConfig,
        seed: int,
        part: int,
        is_compiled: bool = False,
    ) -> None:
        defaults = {"lr": optim.lr, "betas": tuple(optim.betas), "eps": optim.eps}
        super().__init__(parameters, {**defaults, "weight_decay": optim.weight_decay})
        self.precision, self.seed, self.part = optim.state, seed, part
        self.update: Update = rounded_adamw.compiled() if is_compiled else rounded_adamw.update

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            due = [(n, p) for n, p in enumerate(group["params"]) if p.grad is not None]
            if not due:
                continue
            # read at once: each reading waits for the device
            kept = torch.stack([self.state[parameter]["step"] for _, parameter in due])
            steps = [int(step) + 1 for step in kept.tolist()]
            settings = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
            factors = [factors_of(step, **settings) for step in steps]
            device = local(due[0][1]).device
            keys = [
                seed_of(self.seed, "round", step, place, self.part) % (1 << 31)
                for step, (place, _) in zip(steps, due, strict=True)
            ]
            numbers = torch.tensor(factors).to(device), torch.tensor(keys).int().to(device)
            for (_, parameter), *shared in zip(due, *numbers, strict=True):
                self._update(parameter, *shared)

    def _update(self, parameter: nn.Parameter, factors: torch.Tensor, key: torch.Tensor) -> None:
        state = self.state[parameter]
        state["step"] += 1
        weight, gradient = local(parameter), local(parameter.grad)
        moments = [local(state[name]) for name in MOMENTS]
        if moments[0].dtype is torch.bfloat16:
            flat = [weight.view(-1), gradient.reshape(-1), *(moment.view(-1) for moment in moments)]
            self.update(*flat, key, factors)
            return
        share1, share2, decay, rate, correction, eps = factors.unbind()
        mean = as_float(moments[0]).lerp(gradient, share1)
        square = as_float(moments[1]).lerp(gradient.square_(), share2)
        for exact, kept in zip((mean, square), moments, strict=True):
            kept.copy_(exact)
        weight.mul_(decay).sub_(mean.div_(square.sqrt_().mul_(correction).add_(eps)).mul_(rate))


def empty_moment(parameter: torch.Tensor, name: str, precision: StatePrecision) -> torch.Tensor:
    """Return zeros for a moment of a parameter, or for this rank's part of it."""
    if precision is StatePrecision.bf16:
        return torch.zeros_like(parameter, dtype=torch.bfloat16)
    part = local(parameter)
    is_divisible = part.numel() >= FEWEST and part.numel() % BLOCK == 0
    if precision is StatePrecision.fp32 or not is_divisible:
        return torch.zeros_like(parameter, memory_format=torch.preserve_format)
    zeros = quantised_type().zeros(part.shape, name == "exp_avg", BLOCK, part.device, part.dtype)
    return with_local(parameter, zeros)


def quantised_type() -> Any:
    """Return torchao's 8-bit tensor. Raises: ConfigError when it is not installed."""
    try:
        from torchao.optim.subclass_8bit import OptimState8bit
    except ImportError as error:
        raise ConfigError(
            "optim.state=int8 needs torchao; pip install cosmos-hydra[lowbit]"
        ) from error
    return OptimState8bit


def is_quantised(tensor: torch.Tensor) -> bool:
    """Return whether this rank holds a tensor in 8 bits."""
    return hasattr(local(tensor), "codes")


def as_float(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a moment in float32."""
    part: Any = local(tensor)
    return part.dequantize() if is_quantised(part) else part.float()


def requantise(exact: torch.Tensor, kept: Any) -> None:
    """Fill an 8-bit tensor from float32 numbers; those that such a tensor held come out unchanged.

    A block's scale is its largest absolute number. The map has no -1, so a block may have held a
    larger scale than its numbers show: the one that gives all of them back is looked for.
    """
    from torchao.optim.quant_utils import quantize_8bit_with_qmap

    kept.copy_(exact)
    if not kept.signed:
        return  # that map ends with 1, so the scale is what it was
    x_MB = exact.reshape(-1, BLOCK)
    codes_MB, scale_M = kept.codes.view(-1, BLOCK), kept.scale
    lowest = (x_MB.amin(1) / kept.qmap.min()).clamp(min=TINY)
    for limit in (None, 0.0, torch.inf):
        other_M = lowest if limit is None else lowest.nextafter(lowest.new_tensor(limit))
        other_MB = quantize_8bit_with_qmap(x_MB / other_M[:, None], kept.qmap)
        gives_back_M = (kept.qmap[other_MB.int()] * other_M[:, None] == x_MB).all(1)
        codes_MB[gives_back_M] = other_MB[gives_back_M].to(codes_MB.dtype)
        scale_M[gives_back_M] = other_M[gives_back_M]
