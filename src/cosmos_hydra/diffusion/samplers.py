"""Samplers from noise to a clean latent: RES-2ab (the original's) and EDM Euler (diffusers').

State in float64; a sampler is a pure function of the denoiser, the sigmas and the start.
Sources: RES, arXiv 2308.02157 (second-order Adams-Bashforth exponential integrator in
lambda = -ln sigma); Euler, Karras et al. 2022 (arXiv 2206.00364), algorithm 1 without churn.
"""

import itertools
from collections.abc import Callable

import torch

from cosmos_hydra.config import Sampler

SIGMA_MAX = 80.0
SIGMA_MIN = 0.002
RHO = 7.0
# (noisy latent float64, sigma) -> clean estimate float64
DenoiseAt = Callable[[torch.Tensor, float], torch.Tensor]
OnStep = Callable[[], None]


def karras_sigmas(steps: int) -> torch.Tensor:
    """Return steps + 1 noise levels from 80 down to 0.002, float64 (Karras et al., eq. 5)."""
    ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
    return (high + ramp * (low - high)) ** RHO


def sample(
    sampler: Sampler,
    denoise_at: DenoiseAt,
    noise: torch.Tensor,
    steps: int,
    on_step: OnStep = lambda: None,
) -> torch.Tensor:
    """Return the clean latent, float64, from unit normal noise of any shape.

    Calls the denoiser steps + 1 times with RES-2ab, the last one at the lowest sigma being the
    result, and `steps` times with Euler, which ends as diffusers does.
    """
    solve = res_2ab if sampler is Sampler.res_2ab else euler
    return solve(denoise_at, noise.double() * SIGMA_MAX, karras_sigmas(steps), on_step)


def res_2ab(
    denoise_at: DenoiseAt,
    start: torch.Tensor,
    sigmas: torch.Tensor,
    on_step: OnStep = lambda: None,
) -> torch.Tensor:
    """Integrate from sigmas[0] to sigmas[-1] in second order, then denoise once more."""
    state = start
    previous: tuple[torch.Tensor, torch.Tensor] | None = None
    for sigma, sigma_next in itertools.pairwise(sigmas):
        clean = denoise_at(state, float(sigma))
        on_step()
        time, step = -sigma.log(), (sigma / sigma_next).log()
        if previous is None:
            increment = -torch.expm1(-step) * clean
        else:
            clean_before, time_before = previous
            c2 = (time_before - time) / step
            phi1 = -torch.expm1(-step) / step
            phi2 = (step + torch.expm1(-step)) / step**2
            b2 = phi2 / c2
            increment = step * ((phi1 - b2) * clean + b2 * clean_before)
        state = torch.exp(-step) * state + increment
        previous = (clean, time)
    clean = denoise_at(state, float(sigmas[-1]))
    on_step()
    return clean


def euler(
    denoise_at: DenoiseAt,
    start: torch.Tensor,
    sigmas: torch.Tensor,
    on_step: OnStep = lambda: None,
) -> torch.Tensor:
    """Integrate from sigmas[0] to sigmas[-1] in first order."""
    state = start
    for sigma, sigma_next in itertools.pairwise(sigmas):
        clean = denoise_at(state, float(sigma))
        on_step()
        state = state + (state - clean) / sigma * (sigma_next - sigma)
    return state


def guide(conditional: torch.Tensor, unconditional: torch.Tensor, guidance: float) -> torch.Tensor:
    """Return cond + guidance * (cond - uncond), Cosmos's convention: 0 means no guidance."""
    return conditional + guidance * (conditional - unconditional)
