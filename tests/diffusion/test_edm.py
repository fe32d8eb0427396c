"""The EDM objective against closed forms written here from the table of Karras et al. (2022).

Legend: B batch, C channels, F latent frames, H W latent height/width.
"""

import math

import pytest
import torch

from cosmos_hydra.diffusion.edm import denoise, precondition, weighted_error

SIGMA_DATA = 0.5
SIGMAS = [0.0002, 0.002, 0.05, 0.5, 1.0, 4.0, 80.0]


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_the_coefficients_are_those_of_the_paper(sigma: float, sigma_data: float) -> None:
    c = precondition(torch.tensor([sigma], dtype=torch.float64), sigma_data)
    square = sigma**2 + sigma_data**2
    assert c.c_skip.item() == pytest.approx(sigma_data**2 / square, rel=1e-12)
    assert c.c_out.item() == pytest.approx(sigma * sigma_data / math.sqrt(square), rel=1e-12)
    assert c.c_in.item() == pytest.approx(1 / math.sqrt(square), rel=1e-12)
    assert c.c_noise_B.item() == pytest.approx(math.log(sigma) / 4, rel=1e-12)
    assert c.weight.item() == pytest.approx(square / (sigma * sigma_data) ** 2, rel=1e-12)


def test_weight_times_c_out_squared_is_one_in_float32() -> None:
    c = precondition(torch.tensor(SIGMAS), SIGMA_DATA)
    product = (c.weight * c.c_out**2).flatten()
    assert product.dtype == torch.float32
    torch.testing.assert_close(product, torch.ones(len(SIGMAS)), rtol=1e-6, atol=0)


def test_network_input_has_unit_variance_at_every_sigma() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = SIGMA_DATA * torch.randn(200_000, generator=generator)
    for sigma in SIGMAS:
        noisy = clean + sigma * torch.randn(200_000, generator=generator)
        c = precondition(torch.tensor([sigma]), SIGMA_DATA)
        assert (c.c_in.flatten() * noisy).std().item() == pytest.approx(1.0, abs=0.01)


def test_the_estimate_combines_skip_and_raw_prediction() -> None:
    noisy_BCFHW = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    sigma_B = torch.tensor([0.3, 7.0])
    seen = {}

    def network(latent_BCFHW: torch.Tensor, c_noise_B: torch.Tensor) -> torch.Tensor:
        seen["latent"], seen["c_noise"] = latent_BCFHW, c_noise_B
        return torch.tanh(latent_BCFHW)

    estimate_BCFHW = denoise(network, noisy_BCFHW, sigma_B, SIGMA_DATA)
    for index, sigma in enumerate(sigma_B.tolist()):
        root = math.sqrt(sigma**2 + 0.25)
        scaled = noisy_BCFHW[index] / root
        expected = 0.25 / root**2 * noisy_BCFHW[index] + sigma * 0.5 / root * scaled.tanh()
        torch.testing.assert_close(estimate_BCFHW[index], expected)
        torch.testing.assert_close(seen["latent"][index], scaled)
        assert seen["c_noise"][index].item() == pytest.approx(0.25 * math.log(sigma))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_network_sees_float32_and_the_state_keeps_its_width(dtype: torch.dtype) -> None:
    seen = []

    def network(latent_BCFHW: torch.Tensor, c_noise_B: torch.Tensor) -> torch.Tensor:
        seen.extend((latent_BCFHW.dtype, c_noise_B.dtype))
        return latent_BCFHW.bfloat16()

    noisy_BCFHW = torch.ones(1, 1, 1, 2, 2, dtype=dtype)
    estimate_BCFHW = denoise(network, noisy_BCFHW, torch.tensor([1.0]), SIGMA_DATA)
    assert estimate_BCFHW.dtype == dtype
    assert seen == [torch.float32, torch.float32]


def test_loss_is_the_unit_weight_error_of_the_raw_prediction() -> None:
    generator = torch.Generator().manual_seed(2)
    sigma_B = torch.tensor([0.02, 0.3, 1.0, 20.0])
    clean_BCFHW = SIGMA_DATA * torch.randn(4, 3, 2, 4, 4, generator=generator)
    noise_BCFHW = torch.randn(4, 3, 2, 4, 4, generator=generator)
    raw_BCFHW = torch.randn(4, 3, 2, 4, 4, generator=generator)
    noisy_BCFHW = clean_BCFHW + sigma_B.view(-1, 1, 1, 1, 1) * noise_BCFHW
    estimate_BCFHW = denoise(lambda *_: raw_BCFHW, noisy_BCFHW, sigma_B, SIGMA_DATA)
    loss_B = weighted_error(
        estimate_BCFHW, clean_BCFHW, sigma_B, torch.zeros(4, 1, 4, 4), SIGMA_DATA
    )
    for index, sigma in enumerate(sigma_B.tolist()):
        square = sigma**2 + 0.25
        c_skip, c_out = 0.25 / square, sigma * 0.5 / math.sqrt(square)
        target = (clean_BCFHW[index].double() - c_skip * noisy_BCFHW[index].double()) / c_out
        expected = ((raw_BCFHW[index].double() - target) ** 2).mean().item()
        assert loss_B[index].item() == pytest.approx(expected, rel=1e-4)


def test_what_lies_under_the_padding_mask_does_not_count() -> None:
    generator = torch.Generator().manual_seed(3)
    clean_BCFHW = torch.randn(2, 3, 2, 4, 6, generator=generator)
    estimate_BCFHW = torch.randn(2, 3, 2, 4, 6, generator=generator)
    sigma_B = torch.tensor([0.5, 2.0])
    padding_B1HW = torch.zeros(2, 1, 4, 6)
    padding_B1HW[0, :, :, 4:] = 1  # the first sample is padded on the right, the second is not

    def losses(estimate: torch.Tensor) -> torch.Tensor:
        return weighted_error(estimate, clean_BCFHW, sigma_B, padding_B1HW, SIGMA_DATA)

    disturbed_BCFHW = estimate_BCFHW.clone()
    disturbed_BCFHW[0, ..., 4:] = 1e6
    assert torch.equal(losses(disturbed_BCFHW), losses(estimate_BCFHW))
    weight = (0.5**2 + 0.25) / (0.5 * 0.5) ** 2
    error_CFHW = (estimate_BCFHW[0] - clean_BCFHW[0])[..., :4] ** 2
    assert losses(estimate_BCFHW)[0].item() == pytest.approx(
        weight * error_CFHW.mean().item(), rel=1e-6
    )


def test_loss_is_float32_even_for_a_bfloat16_estimate() -> None:
    clean_BCFHW = torch.full((1, 1, 1, 2, 2), 0.3, dtype=torch.bfloat16)
    estimate_BCFHW = torch.full((1, 1, 1, 2, 2), 0.31, dtype=torch.bfloat16)
    loss_B = weighted_error(
        estimate_BCFHW, clean_BCFHW, torch.tensor([0.5]), torch.zeros(1, 1, 2, 2), SIGMA_DATA
    )
    difference = estimate_BCFHW.float()[0, 0, 0, 0, 0] - clean_BCFHW.float()[0, 0, 0, 0, 0]
    assert loss_B.dtype == torch.float32
    assert loss_B.item() == pytest.approx(8 * difference.item() ** 2, rel=1e-6)
