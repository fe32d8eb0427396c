"""What a network must beat: two denoisers in closed form, computed once from training latents.

For clean x with mean m and variance v and noise of standard deviation sigma, the best estimate
under a Gaussian is m + v / (v + sigma^2) * (noisy - m) (the Wiener filter).
Legend: B batch, C channels, F latent frames, H W latent height/width.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Baselines:
    """Statistics of the clean latents, already scaled by sigma_data."""

    # per latent position: mean and variance [C, F, H, W]
    mean_CFHW: torch.Tensor
    variance_CFHW: torch.Tensor
    # over everything: mean square
    power: float

    def gaussian(self, noisy_BCFHW: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
        """Return the estimate of an independent Gaussian at every latent position."""
        share = self.variance_CFHW / (self.variance_CFHW + _like(sigma_B) ** 2)
        return self.mean_CFHW + share * (noisy_BCFHW - self.mean_CFHW)

    def linear(self, noisy_BCFHW: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
        """Return the best multiple of the noisy latent, one number per sigma."""
        return noisy_BCFHW * (self.power / (self.power + _like(sigma_B) ** 2))


def fit_baselines(latents: Iterable[torch.Tensor], sigma_data: float) -> Baselines:
    """Return the statistics of latents [C, F, H, W] of unit deviation, all of one shape."""
    count, total, square = 0, torch.zeros(()), torch.zeros(())
    for latent_CFHW in latents:
        clean_CFHW = latent_CFHW.double() * sigma_data
        count += 1
        total = total + clean_CFHW
        square = square + clean_CFHW**2
    mean_CFHW = total / count
    variance_CFHW = (square / count - mean_CFHW**2).clamp_min(0)
    return Baselines(mean_CFHW.float(), variance_CFHW.float(), float((square / count).mean()))


def _like(sigma_B: torch.Tensor) -> torch.Tensor:
    return sigma_B[:, None, None, None, None]
