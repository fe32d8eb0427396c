"""AdamW and the learning rate as a function of the step."""

import math

import torch
from torch import nn

from cosmos_hydra.config import OptimConfig, Schedule, StatePrecision
from cosmos_hydra.engines.torch.small_moments import SmallMomentsAdamW


def build_optimizer(
    module: nn.Module, optim: OptimConfig, seed: int, part: int, is_compiled: bool = False
) -> torch.optim.Optimizer:
    """Return AdamW over all trainable parameters; the caller sets the rate at every step.

    `part` says which part of the parameters this rank holds; `is_compiled` makes the update of
    moments in bfloat16 one kernel. Raises: ConfigError without torchao, where that is needed.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if optim.state is not StatePrecision.fp32:
        return SmallMomentsAdamW(parameters, optim, seed, part, is_compiled)
    beta1, beta2 = optim.betas
    return torch.optim.AdamW(
        parameters,
        lr=optim.lr,
        betas=(beta1, beta2),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=True,
    )


def learning_rate(optim: OptimConfig, step: int, max_steps: int) -> float:
    """Return the rate of the update from `step` to `step + 1`, step counted from 0."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule is Schedule.constant:
        return optim.lr
    share = (step - optim.warmup_steps) / max(1, max_steps - optim.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return optim.lr * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * cosine)
