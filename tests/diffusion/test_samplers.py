"""The samplers against plain-number re-implementations, an exact solution, and diffusers."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from cosmos_hydra.config import Sampler
from cosmos_hydra.diffusion.samplers import euler, guide, karras_sigmas, res_2ab, sample

MEAN, VARIANCE = 0.7, 0.25  # of the Gaussian whose denoiser is known


def grid(steps: int) -> list[float]:
    """Return the noise levels by the formula of Karras et al. (2022), eq. 5."""
    high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
    return [(high + i / steps * (low - high)) ** 7 for i in range(steps + 1)]


def wiener(state: torch.Tensor, sigma: float) -> torch.Tensor:
    return MEAN + VARIANCE / (VARIANCE + sigma**2) * (state - MEAN)


def curved(state: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return the estimate of a denoiser that is not linear in its input."""
    return torch.tanh(state / math.sqrt(1 + sigma**2)) + 0.1 * math.cos(sigma)


@pytest.mark.parametrize("steps", [1, 2, 35])
def test_sigmas_follow_the_formula(steps: int) -> None:
    sigmas = karras_sigmas(steps)
    assert sigmas.dtype == torch.float64
    assert sigmas.tolist() == pytest.approx(grid(steps), rel=1e-12)
    assert sigmas[0].item() == pytest.approx(80.0)
    assert sigmas[-1].item() == pytest.approx(0.002)


def plain_res_2ab(
    clean_of: Callable[[float, float], float], x: float, sigmas: list[float]
) -> float:
    """Return what RES-2ab makes of one number, written from its equations."""
    earlier = None
    for now, after in itertools.pairwise(sigmas):
        clean = clean_of(x, now)
        if earlier is None:
            x_next = (now - after) / now * clean + after / now * x
        else:
            before, clean_before = earlier
            lam, lam_next, lam_before = -math.log(now), -math.log(after), -math.log(before)
            h = lam_next - lam
            c2 = (lam_before - lam) / h
            # phi1(z) = (e^z - 1) / z and phi2(z) = (phi1(z) - 1) / z at z = -h
            phi1 = (math.exp(-h) - 1) / -h
            phi2 = (phi1 - 1) / -h
            b2 = phi2 / c2
            b1 = phi1 - b2
            x_next = math.exp(-h) * x + h * (b1 * clean + b2 * clean_before)
        earlier = (now, clean)
        x = x_next
    return clean_of(x, sigmas[-1])


@pytest.mark.parametrize("steps", [1, 2, 3, 12])
def test_res_2ab_equals_its_equations_in_plain_numbers(steps: int) -> None:
    start = torch.tensor([-1.3, 0.0, 0.4, 2.1], dtype=torch.float64)
    result = sample(Sampler.res_2ab, curved, start, steps)

    def clean_of(x: float, sigma: float) -> float:
        return curved(torch.tensor(x, dtype=torch.float64), sigma).item()

    expected = [plain_res_2ab(clean_of, 80 * x, grid(steps)) for x in start.tolist()]
    assert result.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def exact(start: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return the solution of the probability-flow ODE of the Gaussian at sigma."""
    share = math.sqrt((VARIANCE + sigma**2) / (VARIANCE + 80.0**2))
    return MEAN + (start - MEAN) * share


@pytest.mark.parametrize(("solve", "order"), [(res_2ab, 2), (euler, 1)])
def test_the_error_falls_with_the_order_of_the_sampler(solve: Callable, order: int) -> None:
    start = 80.0 * torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solution = exact(start, 0.002)
    if solve is res_2ab:
        solution = wiener(solution, 0.002)
    counts = (40, 80, 160, 320, 640)
    errors = [
        (solve(wiener, start, karras_sigmas(steps)) - solution).abs().max().item()
        for steps in counts
    ]
    slope, _ = np.polyfit(np.log(counts), np.log(errors), 1)
    ratios = [coarse / fine for coarse, fine in itertools.pairwise(errors)]
    shown = " ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"{solve.__name__}: order {-slope:.2f}, ratios {shown}")  # noqa: T201
    assert -slope == pytest.approx(order, abs=0.1)
    assert ratios[-1] == pytest.approx(2**order, rel=0.05)
    assert errors[-1] < (2e-4 if order == 2 else 1e-2)


@pytest.mark.parametrize("solve", [res_2ab, euler])
def test_the_first_step_is_exact_for_a_clean_estimate_that_stays(solve: Callable) -> None:
    start = torch.tensor([-70.0, 3.0, 160.0], dtype=torch.float64)
    states: list[torch.Tensor] = []

    def denoise_at(state: torch.Tensor, sigma: float) -> torch.Tensor:
        states.append(state)
        return torch.full_like(state, MEAN)

    end = solve(denoise_at, start, torch.tensor([80.0, 10.0, 0.5], dtype=torch.float64))
    # noise falls with sigma, whatever the length of the steps
    for state, sigma in zip([*states, end][:3], (80.0, 10.0, 0.5), strict=True):
        torch.testing.assert_close(state, MEAN + (start - MEAN) * sigma / 80.0)
    if solve is res_2ab:
        assert torch.equal(end, torch.full_like(start, MEAN))


def test_both_samplers_bring_noise_to_the_gaussian_of_the_data() -> None:
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    for sampler, tolerance in ((Sampler.res_2ab, 0.03), (Sampler.euler, 0.1)):
        result = sample(sampler, wiener, noise, 35)
        assert result.dtype == torch.float64
        assert result.mean().item() == pytest.approx(MEAN, abs=0.02)
        assert result.std().item() == pytest.approx(math.sqrt(VARIANCE), rel=tolerance)


def test_euler_equals_the_scheduler_of_diffusers_step_by_step() -> None:
    from diffusers import EDMEulerScheduler

    # diffusers counts the points of the grid and repeats the last, whose step moves nothing
    steps = 12
    scheduler = EDMEulerScheduler(
        sigma_min=0.002,
        sigma_max=80,
        sigma_data=0.5,
        sigma_schedule="karras",
        prediction_type="epsilon",
        final_sigmas_type="sigma_min",
    )
    scheduler.set_timesteps(steps + 1)
    noise = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    theirs, states = noise * 80, []
    for timestep in scheduler.timesteps:
        states.append(theirs)
        output = torch.sin(scheduler.scale_model_input(theirs, timestep)) + timestep
        theirs = scheduler.step(output, timestep, theirs, return_dict=False)[0]
    assert torch.equal(theirs, states[-1])
    seen = []

    def denoise_at(state: torch.Tensor, sigma: float) -> torch.Tensor:
        seen.append(state)
        root = math.sqrt(sigma**2 + 0.25)
        output = torch.sin(state / root) + 0.25 * math.log(sigma)
        return 0.25 / root**2 * state + 0.5 * sigma / root * output

    seen.append(sample(Sampler.euler, denoise_at, noise, steps))
    assert len(seen) == len(states) == steps + 1
    for ours, other in zip(seen, states, strict=True):
        torch.testing.assert_close(ours, other.double(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("sampler", "calls"), [(Sampler.res_2ab, 6), (Sampler.euler, 5)])
def test_the_denoiser_is_called_once_a_step_and_res_once_more(sampler: Sampler, calls: int) -> None:
    seen, ticks = [], []

    def denoise_at(state: torch.Tensor, sigma: float) -> torch.Tensor:
        seen.append(sigma)
        assert state.dtype == torch.float64
        return wiener(state, sigma)

    sample(sampler, denoise_at, torch.zeros(2), 5, on_step=lambda: ticks.append(1))
    assert seen == pytest.approx(grid(5)[:calls])
    assert len(ticks) == calls


def test_guidance_moves_away_from_the_unconditional_estimate() -> None:
    conditional, unconditional = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0])
    assert guide(conditional, unconditional, 7.0).tolist() == [4.5, -5.0]
    assert torch.equal(guide(conditional, unconditional, 0.0), conditional)
