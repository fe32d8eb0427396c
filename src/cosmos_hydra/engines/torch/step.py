"""One optimizer step over all ranks: losses, gradients, their norm, and the update.

Every rank comes to the same numbers and the same decision. Legend as in edm.py.
"""

import math
from dataclasses import dataclass

import torch

from cosmos_hydra.config import Config
from cosmos_hydra.data.loader import Batch
from cosmos_hydra.diffusion.edm import add_noise, denoise, weighted_error
from cosmos_hydra.diffusion.given import Given, give, mark
from cosmos_hydra.engines.torch.gradients import clip, partial_over_tp, sum_over_tp
from cosmos_hydra.engines.torch.mesh import Ranks
from cosmos_hydra.engines.torch.optimizer import learning_rate
from cosmos_hydra.engines.torch.precision import Autocast, autocast_for
from cosmos_hydra.models.transformer import Denoiser


@dataclass(frozen=True)
class Outcome:
    """What a step came to; losses and sigmas of all ranks' samples, by their position."""

    losses: list[float]
    sigmas: list[float]
    grad_norm: float
    lr: float

    @property
    def loss(self) -> float:
        return sum(self.losses) / len(self.losses)

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Stepper:
    """Make steps with a denoiser and its optimizer."""

    def __init__(
        self, config: Config, denoiser: Denoiser, optimizer: torch.optim.Optimizer, ranks: Ranks
    ) -> None:
        self.config, self.denoiser, self.optimizer, self.ranks = config, denoiser, optimizer, ranks
        self.autocast = autocast_for(config.parallel.precision, ranks.device)
        is_sequence_parallel = config.parallel.sequence_parallel
        self.partial = (
            partial_over_tp(denoiser, is_sequence_parallel) if ranks.degrees.tp > 1 else []
        )

    def compute(self, step: int, batches: list[Batch]) -> Outcome:
        """Fill the gradients, clipped, from this rank's batches; called by every rank."""
        optim, trainer = self.config.optim, self.config.trainer
        found = torch.zeros(2, trainer.global_batch_size)
        mine = []
        for batch in batches:
            moved = batch.to(self.ranks.device)
            losses_B = self._losses(moved)
            (losses_B.sum() / trainer.global_batch_size).backward()
            mine.append((batch.positions, losses_B.detach(), batch.sigma_B))
        if self.partial:
            sum_over_tp(self.partial, self.ranks)
        grad_norm = clip(self.denoiser, optim.grad_clip, self.ranks)
        for positions, losses_B, sigma_B in mine:
            found[:, positions] = torch.stack([losses_B.cpu().float(), sigma_B])
        losses, sigmas = self.ranks.sum_over_dp(found).tolist()
        return Outcome(losses, sigmas, grad_norm, learning_rate(optim, step, trainer.max_steps))

    def apply(self, outcome: Outcome) -> None:
        """Change the weights, unless loss or gradient is no finite number; drop the gradients."""
        if outcome.is_finite:
            for group in self.optimizer.param_groups:
                group["lr"] = outcome.lr
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def estimate(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the clean latents of a batch on the device, and what the network makes of them."""
        sigma_data = self.config.model.objective.sigma_data
        return estimate(self.denoiser, batch, sigma_data, self.autocast)

    def _losses(self, batch: Batch) -> torch.Tensor:
        sigma_data = self.config.model.objective.sigma_data
        return losses(self.denoiser, batch, sigma_data, self.autocast)


def estimate(
    denoiser: Denoiser, batch: Batch, sigma_data: float, autocast: Autocast
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the clean latents of a batch on the device, and what the network makes of them."""
    clean_BCFHW, noisy_BCFHW = add_noise(
        batch.latent_BCFHW, batch.sigma_B, batch.noise_BCFHW, sigma_data
    )

    def network(latent_BCFHW: torch.Tensor, c_noise_B: torch.Tensor) -> torch.Tensor:
        with autocast():
            return denoiser(latent_BCFHW, c_noise_B, batch.text_BTD, batch.padding_B1HW, batch.fps)

    given = given_of(batch, clean_BCFHW, sigma_data)
    if given is None:
        return clean_BCFHW, denoise(network, noisy_BCFHW, batch.sigma_B, sigma_data)
    return clean_BCFHW, given.denoise(network, noisy_BCFHW, batch.sigma_B, sigma_data)


def given_of(batch: Batch, clean_BCFHW: torch.Tensor, sigma_data: float) -> Given | None:
    """Return the given frames of a batch, with its noise; None for a Text2World model."""
    if batch.given_B is None or batch.given_sigma_B is None:
        return None
    return give(clean_BCFHW, batch.noise_BCFHW, batch.given_B, batch.given_sigma_B, sigma_data)


def losses(denoiser: Denoiser, batch: Batch, sigma_data: float, autocast: Autocast) -> torch.Tensor:
    """Return the training loss of each sample of a batch, [B]."""
    clean_BCFHW, estimate_BCFHW = estimate(denoiser, batch, sigma_data, autocast)
    given_B = batch.given_B
    return weighted_error(
        estimate_BCFHW,
        clean_BCFHW,
        batch.sigma_B,
        batch.padding_B1HW,
        sigma_data,
        None if given_B is None else mark(given_B, clean_BCFHW),
    )
