"""Moments of two bytes or one: the same training but for rounding, and bitwise resumable."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import SMALL, Command
from small_runs import assert_same_tensors, rows_of, small_config, state_of, train
from torch import nn

from cosmos_hydra.config import OptimConfig, StatePrecision
from cosmos_hydra.engines.torch.optimizer import build_optimizer
from cosmos_hydra.engines.torch.rounded_adamw import random_bits, rounded
from cosmos_hydra.engines.torch.small_moments import (
    as_float,
    empty_moment,
    quantised_type,
    requantise,
)
from cosmos_hydra.engines.torch.state import make_moments

SMALLER = (StatePrecision.bf16, StatePrecision.int8)


def optimized(state: StatePrecision, gradients: list[torch.Tensor], part: int = 0) -> nn.Linear:
    """Return a layer after steps with these gradients."""
    layer = nn.Linear(64, 64, bias=False)
    layer.weight.data = torch.linspace(-1, 1, 4096).view(64, 64)
    optim = OptimConfig(lr=1e-2, weight_decay=0.1, state=state)
    optimizer = build_optimizer(layer, optim, seed=0, part=part)
    make_moments(layer, optimizer, state)
    for gradient in gradients:
        layer.weight.grad = gradient.clone()
        optimizer.step()
    layer.moments = optimizer.state[layer.weight]
    return layer


def random_gradients(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(64, 64, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("state", SMALLER, ids=str)
def test_updates_are_those_of_adamw_but_for_rounding(state: StatePrecision) -> None:
    gradients = random_gradients(30)
    exact, rounded = (optimized(s, gradients).weight for s in (StatePrecision.fp32, state))
    moved = (exact - torch.linspace(-1, 1, 4096).view(64, 64)).norm()
    assert 0 < (exact - rounded).norm() < 0.03 * moved


def test_a_second_moment_in_bfloat16_follows_a_gradient_that_shrinks() -> None:
    # rounding to the nearest would stay at the first value: one step changes it by a 1000th
    gradients = [torch.full((64, 64), size) for size in (1.0, *[0.01] * 1500)]
    exact, rounded = (
        as_float(optimized(state, gradients).moments["exp_avg_sq"])
        for state in (StatePrecision.fp32, StatePrecision.bf16)
    )
    assert rounded.mean().item() == pytest.approx(exact.mean().item(), rel=0.02)
    assert rounded.std() > 0


def test_rounding_is_a_function_of_seed_step_and_part() -> None:
    gradients = random_gradients(3)
    one, same, other = (optimized(StatePrecision.bf16, gradients, part) for part in (0, 0, 1))
    assert torch.equal(one.moments["exp_avg"], same.moments["exp_avg"])
    assert not torch.equal(one.moments["exp_avg"], other.moments["exp_avg"])


def test_random_bits_are_those_of_the_published_hash() -> None:
    key, mask = 0x1234567, (1 << 32) - 1

    def mixed(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x7FEB352D & mask
        x = (x ^ (x >> 15)) * 0x846CA68B & mask
        return x ^ (x >> 16)

    bits_N = random_bits(10_000, torch.tensor(key, dtype=torch.int32))
    assert [bits & mask for bits in bits_N.tolist()] == [mixed(n ^ key) for n in range(10_000)]


@pytest.mark.parametrize("size", [1.0, -3e-6, 7e19])
def test_rounding_is_right_on_average_and_never_further_than_a_digit(size: float) -> None:
    exact_N = size * torch.linspace(1, 2, 1 << 16)
    random_N = torch.randperm(1 << 16, generator=torch.Generator().manual_seed(0)).int()
    errors_N = rounded(exact_N, random_N).double() / exact_N - 1
    assert errors_N.abs().max() < 2**-7
    assert abs(errors_N.mean().item()) < 5e-5
    # those that bfloat16 has stay
    assert torch.equal(rounded(exact_N.bfloat16().float(), random_N), exact_N.bfloat16())


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_8_bit_numbers_come_back_from_float32_unchanged(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    size_64 = 10 ** torch.empty(64, 1).uniform_(-12, 2, generator=generator)
    exact = torch.randn(64, 1024, generator=generator) * size_64
    exact = exact.square() if name == "exp_avg_sq" else exact
    exact[3:5] = 0
    kept, again = (empty_moment(exact, name, StatePrecision.int8) for _ in range(2))
    assert isinstance(kept, quantised_type())
    kept.copy_(exact)
    requantise(kept.dequantize(), again)
    assert torch.equal(again.dequantize(), kept.dequantize())


@pytest.mark.parametrize("state", SMALLER, ids=str)
def test_a_resumed_run_is_bitwise_an_uninterrupted_one(
    small_samples: Path, tmp_path: Path, state: StatePrecision
) -> None:
    settings = ("trainer.max_steps=6", "trainer.validate_every=3", f"optim.state={state}")
    config = small_config(small_samples, *settings)
    train(config, tmp_path / "whole")
    train(small_config(small_samples, *settings, "trainer.max_steps=3"), tmp_path / "parts")
    train(config, tmp_path / "parts")
    whole, parts = (state_of(tmp_path / name, 6) for name in ("whole", "parts"))
    assert_same_tensors(parts, whole)
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")
    stored = torch.bfloat16 if state is StatePrecision.bf16 else torch.float32
    assert {t.dtype for name, t in whole.items() if name.startswith("exp_avg")} == {stored}


def test_a_run_goes_on_with_smaller_moments(small_samples: Path, tmp_path: Path) -> None:
    for number, state in enumerate(("fp32", "int8", "bf16", "fp32"), start=1):
        steps = f"trainer.max_steps={2 * number}"
        train(small_config(small_samples, steps, f"optim.state={state}"), tmp_path / "mixed")
    train(small_config(small_samples, steps), tmp_path / "exact")
    mixed, exact = (rows_of(tmp_path / name) for name in ("mixed", "exact"))
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in (mixed, exact)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_without_torchao_8_bits_are_refused(
    command: Command, small_samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim.subclass_8bit", None)
    samples = f"paths.samples={small_samples / 'samples'}"
    outcome = command("stage=post_train", *SMALL, samples, "optim.state=int8", cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (
        2,
        "cosmos-hydra: optim.state=int8 needs torchao; pip install cosmos-hydra[lowbit]\n",
    )
