"""What is drawn for a sample at a step: its distribution, and that the key alone decides it."""

import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch

from cosmos_hydra.config import ObjectiveConfig
from cosmos_hydra.diffusion.edm import Noise, draw_noise, quantile_sigmas

OBJECTIVE = ObjectiveConfig()
SHAPE = torch.Size((2, 1, 2, 2))
KEYS = {"seed": 3, "step": 5, "sample": "12", "copy": 0}


def draw(objective: ObjectiveConfig = OBJECTIVE, **changes: object) -> Noise:
    return draw_noise(SHAPE, objective, **{**KEYS, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def draws() -> list[Noise]:
    """Return the noise of 4000 different samples and steps."""
    return [draw(step=step, sample=str(sample)) for step in range(200) for sample in range(20)]


def test_ln_sigma_is_standard_normal(draws: list[Noise]) -> None:
    ln_sigma = torch.stack([noise.sigma for noise in draws]).log()
    assert ln_sigma.mean().item() == pytest.approx(0.0, abs=4 / math.sqrt(len(draws)))
    assert ln_sigma.std().item() == pytest.approx(1.0, abs=4 / math.sqrt(2 * len(draws)))
    # largest distance between the empirical and the normal distribution, 0.1 % level
    expected = torch.special.ndtr(ln_sigma.sort().values)
    observed = (torch.arange(len(draws)) + 0.5) / len(draws)
    assert (expected - observed).abs().max().item() < 1.95 / math.sqrt(len(draws))


def test_latent_noise_is_standard_normal_and_independent_of_sigma(draws: list[Noise]) -> None:
    noise = torch.stack([item.noise_CFHW for item in draws]).flatten(1)
    ln_sigma = torch.stack([item.sigma for item in draws]).log()
    assert noise.mean().item() == pytest.approx(0.0, abs=0.03)
    assert noise.std().item() == pytest.approx(1.0, abs=0.03)
    correlation = torch.corrcoef(torch.cat([ln_sigma[:, None], noise], dim=1).T)
    off_diagonal = correlation - torch.eye(len(correlation))
    assert off_diagonal.abs().max().item() < 5 / math.sqrt(len(draws))


@pytest.mark.parametrize("dropout", [0.0, 0.2, 0.9])
def test_text_is_dropped_at_the_configured_rate(dropout: float) -> None:
    objective = replace(OBJECTIVE, text_dropout=dropout)
    count = 2000
    dropped = sum(not draw(objective, step=step).keeps_text for step in range(count))
    spread = math.sqrt(dropout * (1 - dropout) / count)
    assert dropped / count == pytest.approx(dropout, abs=4 * spread)


def test_the_draw_has_the_configured_mean_and_deviation_and_is_never_clipped() -> None:
    shifted = draw(replace(OBJECTIVE, p_mean=6.0, p_std=0.5)).sigma
    assert shifted.log().item() == pytest.approx(6.0 + 0.5 * draw().sigma.log().item(), rel=1e-5)
    assert shifted > 80  # sigma_max of sampling
    assert draw(replace(OBJECTIVE, p_mean=-12.0)).sigma < 0.0002


def test_the_draw_is_a_function_of_its_key_and_nothing_else() -> None:
    first = draw()
    state = torch.get_rng_state()
    for step in range(10):
        draw(step=step, sample="another")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = draw()
    assert torch.equal(first.noise_CFHW, again.noise_CFHW)
    assert torch.equal(first.sigma, again.sigma)
    assert first.keeps_text == again.keeps_text


@pytest.mark.parametrize("change", [{"seed": 4}, {"step": 6}, {"sample": "13"}, {"copy": 1}])
def test_every_part_of_the_key_counts(change: dict[str, object]) -> None:
    assert not torch.equal(draw().noise_CFHW, draw(**change).noise_CFHW)
    assert draw().sigma != draw(**change).sigma


def test_neighbouring_parts_of_the_key_do_not_run_together() -> None:
    one, other = draw(step=1, sample="23"), draw(step=12, sample="3")
    assert one.sigma != other.sigma


def test_noise_is_float32_on_the_cpu() -> None:
    noise = draw()
    assert noise.noise_CFHW.dtype == noise.sigma.dtype == torch.float32
    assert noise.noise_CFHW.device.type == noise.sigma.device.type == "cpu"
    assert noise.noise_CFHW.shape == SHAPE


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_validation_sigmas_lie_in_the_middle_of_equal_shares(count: int) -> None:
    objective = replace(OBJECTIVE, p_mean=0.3, p_std=1.7)
    normal = NormalDist(0.3, 1.7)
    expected = [math.exp(normal.inv_cdf((index + 0.5) / count)) for index in range(count)]
    sigmas = quantile_sigmas(objective, count)
    assert sigmas.dtype == torch.float32
    assert sigmas.tolist() == pytest.approx(expected, rel=1e-5)


def test_mean_over_the_validation_sigmas_estimates_the_mean_over_training() -> None:
    def error(sigma: torch.Tensor) -> torch.Tensor:
        return sigma**2 / (sigma**2 + 0.25)

    z = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    fixed = error(quantile_sigmas(OBJECTIVE, 8)).mean().item()
    assert fixed == pytest.approx(error(z.exp()).mean().item(), abs=0.01)
