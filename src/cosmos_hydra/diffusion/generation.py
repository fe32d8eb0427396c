"""From a text embedding to a latent: the denoiser, guidance and a sampler put together.

Legend: B batch, C channels, F latent frames, H W latent height/width, T text tokens, D text dim.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from cosmos_hydra.config import GenerateConfig, Sampler
from cosmos_hydra.diffusion.edm import denoise
from cosmos_hydra.diffusion.samplers import DenoiseAt, guide, sample
from cosmos_hydra.seeds import torch_generator

# as Denoiser.forward: scaled latent, c_noise, text, padding mask, fps
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
    denoise_at = conditioned(
        denoiser,
        torch.stack(texts).to(device),
        torch.zeros(1, 1, H, W, device=device),
        request.fps,
        request.guidance,
        sigma_data,
        autocast,
    )
    generator = torch_generator("generate", request.seed)
    noise_1CFHW = torch.randn(1, C, F, H, W, generator=generator).to(device)
    clean_1CFHW = sample(request.sampler, denoise_at, noise_1CFHW, request.steps, on_step)
    return to_latent(clean_1CFHW, sigma_data)


def conditioned(
    denoiser: RawPrediction,
    text_BTD: torch.Tensor,
    padding_11HW: torch.Tensor,
    fps: float,
    guidance: float,
    sigma_data: float,
    autocast: Callable[[], AbstractContextManager],
) -> DenoiseAt:
    """Return what a sampler calls: the clean estimate of one noisy latent at a sigma.

    `text_BTD` is one text, or two with guidance, the second being what it steers away from.
    """
    B = len(text_BTD)
    padding_B1HW = padding_11HW.expand(B, -1, -1, -1)

    def network(latent_BCFHW: torch.Tensor, c_noise_B: torch.Tensor) -> torch.Tensor:
        with autocast():
            return denoiser(latent_BCFHW, c_noise_B, text_BTD, padding_B1HW, fps)

    def denoise_at(noisy_1CFHW: torch.Tensor, sigma: float) -> torch.Tensor:
        noisy_BCFHW = noisy_1CFHW.expand(B, -1, -1, -1, -1)
        sigma_B = torch.full((B,), sigma, dtype=noisy_BCFHW.dtype, device=noisy_BCFHW.device)
        clean_BCFHW = denoise(network, noisy_BCFHW, sigma_B, sigma_data)
        return guide(clean_BCFHW[:1], clean_BCFHW[1:], guidance) if guidance else clean_BCFHW

    return denoise_at


def to_latent(clean_1CFHW: torch.Tensor, sigma_data: float) -> torch.Tensor:
    """Return a sampler's result as a latent of unit deviation, float32 [C, F, H, W]."""
    return (clean_1CFHW[0] / sigma_data).float()
