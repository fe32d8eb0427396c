"""From a text embedding to a latent: the denoiser, guidance and a sampler put together.

Legend: B batch, C channels, F latent frames, H W latent height/width, T text tokens, D text dim.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from cosmos_hydra.config import GenerateConfig, Sampler
from cosmos_hydra.diffusion.edm import denoise
from cosmos_hydra.diffusion.given import Given, give
from cosmos_hydra.diffusion.samplers import DenoiseAt, guide, sample
from cosmos_hydra.seeds import torch_generator

# as Denoiser.forward: scaled latent (of a Video2World model with the mask of given frames behind
# it), c_noise, text, padding mask, fps
RawPrediction = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor
]


@dataclass(frozen=True)
class Request:
    """What to generate. `negative_TD` is only used with guidance; None means zeros."""

    text_TD: torch.Tensor
    negative_TD: torch.Tensor | None
    shape_CFHW: tuple[int, int, int, int]
    fps: float
    seed: int
    steps: int
    guidance: float
    sampler: Sampler
    # of a Video2World model: the first latent frames of unit deviation, [C, L, H, W]; L may be 0
    given_CLHW: torch.Tensor | None = None
    # standard deviation of their own noise
    given_sigma: float = 0.0


def clip_passes(generate: GenerateConfig) -> int:
    """Return how often a clip goes through the network for a video, both branches counted."""
    evaluations = generate.steps + (generate.sampler is Sampler.res_2ab)
    return evaluations * (2 if generate.guidance else 1)


@torch.no_grad()
def generate_latent(
    denoiser: RawPrediction,
    request: Request,
    sigma_data: float,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
    on_step: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Return a latent of unit deviation, float32 [C, F, H, W], on the device.

    The start depends on the seed alone, not on the device.
    """
    texts = [request.text_TD]
    if request.guidance:
        negative_TD = request.negative_TD
        texts.append(torch.zeros_like(request.text_TD) if negative_TD is None else negative_TD)
    C, F, H, W = request.shape_CFHW
    generator = torch_generator("generate", request.seed)
    noise_1CFHW = torch.randn(1, C, F, H, W, generator=generator).to(device)
    denoise_at = conditioned(
        denoiser,
        torch.stack(texts).to(device),
        torch.zeros(1, 1, H, W, device=device),
        request.fps,
        request.guidance,
        sigma_data,
        autocast,
        _given(request, generator, sigma_data, device),
        request.given_sigma,
    )
    clean_1CFHW = sample(request.sampler, denoise_at, noise_1CFHW, request.steps, on_step)
    return to_latent(clean_1CFHW, sigma_data)


def _given(
    request: Request, generator: torch.Generator, sigma_data: float, device: torch.device
) -> Given | None:
    """Return the given frames in place, with noise that stays the same while sampling."""
    if request.given_CLHW is None:
        return None
    C, F, H, W = request.shape_CFHW
    count = request.given_CLHW.shape[1]
    clean_1CFHW = torch.zeros(1, C, F, H, W)
    clean_1CFHW[0, :, :count] = sigma_data * request.given_CLHW.float().cpu()
    noise_1CFHW = torch.randn(1, C, F, H, W, generator=generator)
    sigma_1 = torch.tensor([request.given_sigma])
    return give(
        clean_1CFHW.to(device),
        noise_1CFHW.to(device),
        torch.tensor([count]),
        sigma_1.to(device),
        sigma_data,
    )


def conditioned(
    denoiser: RawPrediction,
    text_BTD: torch.Tensor,
    padding_11HW: torch.Tensor,
    fps: float,
    guidance: float,
    sigma_data: float,
    autocast: Callable[[], AbstractContextManager],
    given: Given | None = None,
    given_sigma: float = 0.0,
) -> DenoiseAt:
    """Return what a sampler calls: the clean estimate of one noisy latent at a sigma.

    `text_BTD` is one text, or two with guidance, the second being what it steers away from. Both
    branches have the same given frames; where these have as much noise as the rest, they are
    denoised with it.
    """
    B = len(text_BTD)
    padding_B1HW = padding_11HW.expand(B, -1, -1, -1)

    def network(latent_BCFHW: torch.Tensor, c_noise_B: torch.Tensor) -> torch.Tensor:
        with autocast():
            return denoiser(latent_BCFHW, c_noise_B, text_BTD, padding_B1HW, fps)

    def denoise_at(noisy_1CFHW: torch.Tensor, sigma: float) -> torch.Tensor:
        noisy_BCFHW = noisy_1CFHW.expand(B, -1, -1, -1, -1)
        sigma_B = torch.full((B,), sigma, dtype=noisy_BCFHW.dtype, device=noisy_BCFHW.device)
        if given is None:
            clean_BCFHW = denoise(network, noisy_BCFHW, sigma_B, sigma_data)
        else:
            shown = given if given_sigma < sigma else given.hidden()
            clean_BCFHW = shown.denoise(network, noisy_BCFHW, sigma_B, sigma_data)
        return guide(clean_BCFHW[:1], clean_BCFHW[1:], guidance) if guidance else clean_BCFHW

    return denoise_at


def to_latent(clean_1CFHW: torch.Tensor, sigma_data: float) -> torch.Tensor:
    """Return a sampler's result as a latent of unit deviation, float32 [C, F, H, W]."""
    return (clean_1CFHW[0] / sigma_data).float()
