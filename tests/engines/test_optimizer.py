"""The learning rate as a function of the step, and which parameters AdamW gets."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from cosmos_hydra.config import OptimConfig, Schedule
from cosmos_hydra.engines.torch.optimizer import build_optimizer, learning_rate

OPTIM = OptimConfig(lr=0.1)


def test_constant_is_the_peak_at_every_step() -> None:
    assert {learning_rate(OPTIM, step, 50) for step in range(50)} == {0.1}


def test_warmup_rises_linearly_and_ends_at_the_peak() -> None:
    optim = replace(OPTIM, warmup_steps=4)
    rates = [learning_rate(optim, step, 10) for step in range(6)]
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_the_first_update_of_a_warmup_is_not_lost() -> None:
    assert learning_rate(replace(OPTIM, warmup_steps=1000), 0, 2000) == pytest.approx(1e-4)


@pytest.mark.parametrize("min_lr_ratio", [0.0, 0.1])
def test_cosine_starts_at_the_peak_and_ends_at_the_minimum(min_lr_ratio: float) -> None:
    optim = replace(OPTIM, schedule=Schedule.cosine, warmup_steps=10, min_lr_ratio=min_lr_ratio)
    assert learning_rate(optim, 9, 110) == pytest.approx(0.1)
    assert learning_rate(optim, 10, 110) == pytest.approx(0.1)
    assert learning_rate(optim, 60, 110) == pytest.approx(0.1 * (1 + min_lr_ratio) / 2)
    assert learning_rate(optim, 110, 110) == pytest.approx(0.1 * min_lr_ratio)
    rates = [learning_rate(optim, step, 110) for step in range(10, 111)]
    assert rates == sorted(rates, reverse=True)
    quarter = min_lr_ratio + (1 - min_lr_ratio) * (1 + math.sqrt(0.5)) / 2
    assert learning_rate(optim, 35, 110) == pytest.approx(0.1 * quarter)


def test_cosine_stays_at_the_minimum_beyond_the_last_step() -> None:
    optim = replace(OPTIM, schedule=Schedule.cosine, min_lr_ratio=0.2)
    assert learning_rate(optim, 500, 100) == pytest.approx(0.02)


def test_only_trainable_parameters_are_updated_with_the_configured_values() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    optim = OptimConfig(lr=0.1, weight_decay=0.3, betas=[0.8, 0.9], eps=1e-5)
    optimizer = build_optimizer(module, optim, seed=0, part=0)
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in module[1].parameters()]
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.3, (0.8, 0.9), 1e-5)


def test_an_update_is_that_of_decoupled_weight_decay() -> None:
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(2.0)
    optim = OptimConfig(lr=0.1, weight_decay=0.5, eps=1e-8)
    optimizer = build_optimizer(module, optim, seed=0, part=0)
    module.weight.grad = torch.full((1, 1), 3.0)
    optimizer.step()
    # the first Adam step has the length of the rate, whatever the gradient
    assert module.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1, rel=1e-6)
