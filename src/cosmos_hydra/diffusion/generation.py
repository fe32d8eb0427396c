"""From a text embedding to a latent: the denoiser, guidance and a sampler put together.

Legend: B batch, C channels, F latent frames, H W latent height/width, T text tokens, D text dim.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from cosmos_hydra.config import Sampler
from cosmos_hydra.diffusion.edm import denoise
from cosmos_hydra.diffusion.samplers import guide, sample
from cosmos_hydra.models.transformer import Denoiser
from cosmos_hydra.seeds import torch_generator


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


@torch.no_grad()
def generate_latent(
    denoiser: Denoiser,
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
    text_BTD = torch.stack(texts).to(device)
    B, (C, F, H, W) = len(texts), request.shape_CFHW
    padding_B1HW = torch.zeros(B, 1, H, W, device=device)

    def network(latent_BCFHW: torch.Tensor, c_noise_B: torch.Tensor) -> torch.Tensor:
        with autocast():
            return denoiser(latent_BCFHW, c_noise_B, text_BTD, padding_B1HW, request.fps)

    def denoise_at(noisy_1CFHW: torch.Tensor, sigma: float) -> torch.Tensor:
        noisy_BCFHW = noisy_1CFHW.expand(B, -1, -1, -1, -1)
        sigma_B = torch.full((B,), sigma, dtype=noisy_BCFHW.dtype, device=device)
        clean_BCFHW = denoise(network, noisy_BCFHW, sigma_B, sigma_data)
        if not request.guidance:
            return clean_BCFHW
        return guide(clean_BCFHW[:1], clean_BCFHW[1:], request.guidance)

    generator = torch_generator("generate", request.seed)
    noise_1CFHW = torch.randn(1, C, F, H, W, generator=generator).to(device)
    clean = sample(request.sampler, denoise_at, noise_1CFHW, request.steps, on_step)
    return (clean[0] / sigma_data).float()
