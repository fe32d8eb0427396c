"""The EDM objective of Cosmos-1.0 in float32.

Source: Karras et al. 2022 (arXiv 2206.00364), table 1, with sigma_data = 0.5 and
ln sigma ~ N(p_mean, p_std). Legend: B batch, C channels, F latent frames, H W latent
height/width, T text tokens, D text dim.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cosmos_hydra.config import ObjectiveConfig
from cosmos_hydra.seeds import torch_generator

# (scaled latent, c_noise) -> raw prediction; text, padding and fps are bound by the caller
Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Preconditioning:
    """The five functions of sigma, each [B, 1, 1, 1, 1] but c_noise, which is [B]."""

    c_skip: torch.Tensor
    c_out: torch.Tensor
    c_in: torch.Tensor
    c_noise_B: torch.Tensor
    weight: torch.Tensor


def precondition(sigma_B: torch.Tensor, sigma_data: float) -> Preconditioning:
    """Return the coefficients at positive noise levels sigma_B, in its dtype."""
    sigma = sigma_B[:, None, None, None, None]
    total = sigma**2 + sigma_data**2
    return Preconditioning(
        c_skip=sigma_data**2 / total,
        c_out=sigma * sigma_data / total.sqrt(),
        c_in=total.rsqrt(),
        c_noise_B=0.25 * sigma_B.log(),
        weight=total / (sigma * sigma_data) ** 2,
    )


def add_noise(
    latent_BCFHW: torch.Tensor, sigma_B: torch.Tensor, noise_BCFHW: torch.Tensor, sigma_data: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the clean latent, scaled from unit deviation to sigma_data, and the noisy one."""
    clean_BCFHW = latent_BCFHW * sigma_data
    return clean_BCFHW, clean_BCFHW + sigma_B[:, None, None, None, None] * noise_BCFHW


def denoise(
    network: Network, noisy_BCFHW: torch.Tensor, sigma_B: torch.Tensor, sigma_data: float
) -> torch.Tensor:
    """Return the estimate of the clean latent, float32 or wider.

    `noisy_BCFHW` is clean + sigma * noise with the clean latent scaled to sigma_data.
    """
    c = precondition(sigma_B.to(noisy_BCFHW.dtype), sigma_data)
    raw_BCFHW = network((c.c_in * noisy_BCFHW).float(), c.c_noise_B.float())
    return c.c_skip * noisy_BCFHW + c.c_out * raw_BCFHW.to(noisy_BCFHW.dtype)


def weighted_error(
    estimate_BCFHW: torch.Tensor,
    clean_BCFHW: torch.Tensor,
    sigma_B: torch.Tensor,
    padding_B1HW: torch.Tensor,
    sigma_data: float,
    given_B1F11: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the EDM loss of each sample, [B]: weighted squared error, mean over its elements.

    Elements under the padding mask and in given frames do not count. With neither this is the mean
    over all elements, the unit-weight error of the raw prediction.
    """
    weight = precondition(sigma_B.float(), sigma_data).weight
    error_BCFHW = weight * (estimate_BCFHW.float() - clean_BCFHW.float()) ** 2
    keep_B1FHW = (1.0 - padding_B1HW.float())[:, :, None]
    keep_B1FHW = keep_B1FHW.expand(-1, -1, error_BCFHW.shape[2], -1, -1)
    if given_B1F11 is not None:
        keep_B1FHW = keep_B1FHW * (1.0 - given_B1F11.float())
    total_B = (error_BCFHW * keep_B1FHW).sum(dim=(1, 2, 3, 4))
    return total_B / (keep_B1FHW.sum(dim=(1, 2, 3, 4)) * error_BCFHW.shape[1])


@dataclass(frozen=True)
class Noise:
    """What is drawn for one sample at one step: sigma, noise like the latent, keep the text?

    And, of a Video2World model, how many frames are given and the sigma of their own noise.
    """

    sigma: torch.Tensor
    noise_CFHW: torch.Tensor
    keeps_text: bool
    given: int | None = None
    given_sigma: torch.Tensor | None = None


def draw_noise(
    shape: torch.Size, objective: ObjectiveConfig, seed: int, step: int, sample: str, copy: int
) -> Noise:
    """Return the noise of a sample at a step, a function of the key alone, float32 on the CPU.

    `copy` counts how often the sample has occurred before in the same step.
    """
    generator = torch_generator(seed, "train", step, sample, copy)
    sigma = torch.exp(objective.p_mean + objective.p_std * torch.randn((), generator=generator))
    keeps_text = bool(torch.rand((), generator=generator) >= objective.text_dropout)
    noise_CFHW = torch.randn(shape, generator=generator)
    choices = objective.given_frames
    if not choices:
        return Noise(sigma, noise_CFHW, keeps_text)
    choice = int(torch.randint(len(choices), (), generator=generator))
    ln_sigma = objective.given_p_mean + objective.given_p_std * torch.randn((), generator=generator)
    return Noise(sigma, noise_CFHW, keeps_text, choices[choice], ln_sigma.exp())


def quantile_sigmas(objective: ObjectiveConfig, count: int) -> torch.Tensor:
    """Return `count` sigmas at the middle of equal shares of the training distribution.

    The mean loss over them estimates the training loss without its randomness.
    """
    quantile = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    z = torch.special.ndtri(quantile)
    return torch.exp(objective.p_mean + objective.p_std * z).float()
