"""From text to latent with a recording network: which branches run, and what guidance does."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from cosmos_hydra.config import Sampler
from cosmos_hydra.diffusion.generation import Request, generate_latent

TEXT_TD = torch.full((4, 8), 0.5)
NEGATIVE_TD = torch.full((4, 8), -0.25)
REQUEST = Request(
    text_TD=TEXT_TD,
    negative_TD=None,
    shape_CFHW=(3, 2, 4, 6),
    fps=12.0,
    seed=1,
    steps=3,
    guidance=0.0,
    sampler=Sampler.res_2ab,
)


class Recorder(nn.Module):
    """A network whose prediction is the mean of its text, the same for every element."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict] = []

    def forward(
        self,
        latent_BCFHW: torch.Tensor,
        c_noise_B: torch.Tensor,
        text_BTD: torch.Tensor,
        padding_B1HW: torch.Tensor,
        fps: float,
    ) -> torch.Tensor:
        self.calls.append(
            {"latent": latent_BCFHW, "text": text_BTD, "padding": padding_B1HW, "fps": fps}
        )
        return text_BTD.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1).expand_as(latent_BCFHW)


def generate(network: nn.Module, request: Request) -> torch.Tensor:
    return generate_latent(network, request, 0.5, torch.device("cpu"), nullcontext)


@pytest.mark.parametrize("negative_TD", [None, NEGATIVE_TD])
def test_without_guidance_the_unconditional_branch_never_runs(
    negative_TD: torch.Tensor | None,
) -> None:
    network = Recorder()
    generate(network, replace(REQUEST, negative_TD=negative_TD))
    assert len(network.calls) == 4
    for call in network.calls:
        assert call["latent"].shape == (1, 3, 2, 4, 6)
        assert torch.equal(call["text"], TEXT_TD[None])
        assert torch.equal(call["padding"], torch.zeros(1, 1, 4, 6))
        assert call["fps"] == 12.0


@pytest.mark.parametrize("negative_TD", [None, NEGATIVE_TD])
def test_with_guidance_both_texts_see_the_same_noisy_latent(
    negative_TD: torch.Tensor | None,
) -> None:
    network = Recorder()
    generate(network, replace(REQUEST, negative_TD=negative_TD, guidance=3.0))
    assert len(network.calls) == 4
    unconditional_TD = torch.zeros_like(TEXT_TD) if negative_TD is None else negative_TD
    for call in network.calls:
        assert torch.equal(call["latent"][0], call["latent"][1])
        assert torch.equal(call["text"], torch.stack([TEXT_TD, unconditional_TD]))


def test_guidance_equals_a_network_that_predicts_the_guided_value() -> None:
    # the estimate is linear in the prediction, so guiding one is guiding the other
    guided = 0.5 + 3.0 * (0.5 - -0.25)
    request = replace(REQUEST, negative_TD=NEGATIVE_TD, guidance=3.0)
    expected = generate(Recorder(), replace(REQUEST, text_TD=torch.full((4, 8), guided)))
    torch.testing.assert_close(generate(Recorder(), request), expected)


def test_the_network_that_knows_only_the_deviation_gives_unit_deviation() -> None:
    # predicting zero is the exact denoiser of a Gaussian of deviation sigma_data
    request = replace(REQUEST, text_TD=torch.zeros(4, 8), shape_CFHW=(16, 4, 16, 16), steps=35)
    latent_CFHW = generate(Recorder(), request)
    assert latent_CFHW.dtype == torch.float32
    assert latent_CFHW.std().item() == pytest.approx(1.0, abs=0.04)


def test_the_seed_alone_decides_the_start() -> None:
    first = generate(Recorder(), REQUEST)
    torch.manual_seed(5)
    assert torch.equal(generate(Recorder(), REQUEST), first)
    assert not torch.equal(generate(Recorder(), replace(REQUEST, seed=2)), first)
