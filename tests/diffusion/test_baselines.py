"""The closed-form denoisers against brute force: integration, least squares, perturbations."""

import numpy as np
import pytest
import torch

from cosmos_hydra.diffusion.baselines import Baselines, fit_baselines
from cosmos_hydra.diffusion.edm import weighted_error

SIGMA_DATA = 0.5
SHAPE = (2, 3, 2, 2)


def gaussian_latents(count: int, seed: int) -> list[torch.Tensor]:
    """Return latents whose positions are independent Gaussians of different mean and spread."""
    fixed = torch.Generator().manual_seed(100)
    mean = 0.8 * torch.randn(SHAPE, generator=fixed)
    spread = 0.2 + torch.rand(SHAPE, generator=fixed)
    generator = torch.Generator().manual_seed(seed)
    return [mean + spread * torch.randn(SHAPE, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module")
def baselines() -> Baselines:
    return fit_baselines(gaussian_latents(60, seed=0), SIGMA_DATA)


def test_the_statistics_are_those_of_the_scaled_latents(baselines: Baselines) -> None:
    clean = np.stack([latent.numpy() for latent in gaussian_latents(60, seed=0)]) * SIGMA_DATA
    np.testing.assert_allclose(baselines.mean_CFHW, clean.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(baselines.variance_CFHW, clean.var(0), rtol=1e-4)
    assert baselines.power == pytest.approx((clean**2).mean(), rel=1e-5)


@pytest.mark.parametrize("sigma", [0.05, 0.7, 6.0])
def test_the_gaussian_denoiser_is_the_posterior_mean(baselines: Baselines, sigma: float) -> None:
    noisy = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1)) * sigma
    estimate = baselines.gaussian(noisy, torch.tensor([sigma]))[0].numpy()
    for position in np.ndindex(SHAPE):
        mean = baselines.mean_CFHW[position].item()
        deviation = baselines.variance_CFHW[position].item() ** 0.5
        clean = mean + deviation * np.linspace(-12, 12, 20001)
        observed = noisy[0][position].item()
        log_density = -((clean - mean) ** 2) / (2 * deviation**2)
        log_density -= (observed - clean) ** 2 / (2 * sigma**2)
        density = np.exp(log_density - log_density.max())
        expected = (clean * density).sum() / density.sum()
        assert estimate[position] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 3.0])
def test_the_linear_denoiser_is_the_least_squares_multiple(
    baselines: Baselines, sigma: float
) -> None:
    clean = np.stack([latent.numpy() for latent in gaussian_latents(60, seed=0)]) * SIGMA_DATA
    clean = np.tile(clean.reshape(-1), 200)
    noisy = clean + sigma * np.random.default_rng(0).standard_normal(clean.size)
    (multiple,), *_ = np.linalg.lstsq(noisy[:, None], clean, rcond=None)
    ones = torch.ones(1, *SHAPE)
    estimate = baselines.linear(ones, torch.tensor([sigma]))
    assert estimate.unique().numel() == 1
    assert estimate.flatten()[0].item() == pytest.approx(multiple, rel=0.01)


def test_every_sample_of_a_batch_has_its_own_sigma(baselines: Baselines) -> None:
    noisy = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(2))
    sigmas = torch.tensor([0.2, 5.0])
    for estimate in (baselines.gaussian, baselines.linear):
        both = estimate(noisy, sigmas)
        for index in range(2):
            alone = estimate(noisy[index : index + 1], sigmas[index : index + 1])
            assert torch.equal(both[index], alone[0])


def test_a_position_that_never_changes_is_known_exactly() -> None:
    latents = [torch.full(SHAPE, 0.3), torch.full(SHAPE, 0.3)]
    fitted = fit_baselines(latents, SIGMA_DATA)
    noisy = 5 * torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(3))
    estimate = fitted.gaussian(noisy, torch.tensor([1.0]))
    torch.testing.assert_close(estimate, torch.full((1, *SHAPE), 0.15), atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0])
def test_on_gaussian_data_nothing_measured_beats_the_gaussian_denoiser(sigma: float) -> None:
    fitted = fit_baselines(gaussian_latents(5000, seed=4), SIGMA_DATA)
    clean = torch.stack(gaussian_latents(5000, seed=5)) * SIGMA_DATA
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(6))
    noisy, sigma_B = clean + sigma * noise, torch.full((len(clean),), sigma)
    padding = torch.zeros(len(clean), 1, *SHAPE[2:])
    best = fitted.gaussian(noisy, sigma_B)

    def loss(estimate: torch.Tensor) -> float:
        return weighted_error(estimate, clean, sigma_B, padding, SIGMA_DATA).mean().item()

    others = {
        "linear": fitted.linear(noisy, sigma_B),
        "noisy itself": noisy,
        "mean": fitted.mean_CFHW.expand_as(noisy),
        "zero": torch.zeros_like(noisy),
        "skip": noisy * SIGMA_DATA**2 / (SIGMA_DATA**2 + sigma**2),
        "one variance for all": fitted.mean_CFHW
        + (noisy - fitted.mean_CFHW)
        * (fitted.variance_CFHW.mean() / (fitted.variance_CFHW.mean() + sigma**2)),
        "trusts the noisy latent more": fitted.mean_CFHW + 1.1 * (best - fitted.mean_CFHW),
        "trusts the noisy latent less": fitted.mean_CFHW + 0.9 * (best - fitted.mean_CFHW),
        "shifted": best + 0.02,
    }
    for name, estimate in others.items():
        assert loss(estimate) > loss(best), name
    assert loss(others["linear"]) < loss(others["zero"])
