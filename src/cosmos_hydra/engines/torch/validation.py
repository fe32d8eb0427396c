"""Loss on held-out samples at fixed sigmas and noise, so that steps and runs compare.

Legend: B batch (here the sigmas of one sample), C channels, F latent frames, H W latent
height/width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cosmos_hydra.config import Config
from cosmos_hydra.data.clips import HELD_OUT, TRAIN
from cosmos_hydra.data.store import Sample, SampleStore
from cosmos_hydra.diffusion.baselines import Baselines, fit_baselines
from cosmos_hydra.diffusion.edm import add_noise, denoise, quantile_sigmas, weighted_error
from cosmos_hydra.diffusion.given import Given, give
from cosmos_hydra.engines.torch.mesh import Ranks
from cosmos_hydra.engines.torch.precision import Autocast
from cosmos_hydra.models.transformer import Denoiser
from cosmos_hydra.seeds import numpy_generator, torch_generator


@dataclass(frozen=True)
class _Case:
    """One sample at every sigma."""

    sample: Sample
    clean_1CFHW: torch.Tensor
    noisy_BCFHW: torch.Tensor
    padding_B1HW: torch.Tensor
    given: Given | None


class Validation:
    """Fixed cases, and the closed-form baselines on exactly those."""

    def __init__(self, config: Config, store: SampleStore) -> None:
        self.objective = config.model.objective
        self.sigma_data = self.objective.sigma_data
        self.micro_batch_size = config.trainer.micro_batch_size
        self.sigma_B = quantile_sigmas(config.model.objective, config.trainer.validation_sigmas)
        self.is_held_out = bool(store.splits[HELD_OUT])
        ids = list(store.splits[HELD_OUT] or store.splits[TRAIN])
        given = self.objective.given_frames
        # of a Video2World model every sample is a case for each number of given frames
        wanted = max(1, config.trainer.validation_samples // max(1, len(given)))
        count = min(wanted, len(ids))
        # a fixed choice over all held-out videos, not the first video's clips
        chosen = numpy_generator(config.seed, "validation").permutation(len(ids))[:count]
        choices: list[int | None] = [*given] or [None]
        samples = [store.load(ids[i]) for i in sorted(chosen)]
        self.cases = [
            self._case(sample, config.seed, frames) for sample in samples for frames in choices
        ]
        self.baseline_rows = self._baselines(store)

    def _case(self, sample: Sample, seed: int, given_frames: int | None) -> _Case:
        generator = torch_generator(seed, "validation", sample.id)
        count = len(self.sigma_B)
        noise_BCFHW = torch.randn(count, *sample.latent_CFHW.shape, generator=generator)
        latent_1CFHW = sample.latent_CFHW[None].float()
        clean_1CFHW, noisy_BCFHW = add_noise(
            latent_1CFHW, self.sigma_B, noise_BCFHW, self.sigma_data
        )
        padding_B1HW = sample.padding_1HW[None].expand(count, -1, -1, -1)
        given = None
        if given_frames is not None:
            given = give(
                clean_1CFHW,
                noise_BCFHW[:1],
                torch.tensor([given_frames]),
                torch.tensor([self.objective.given_sigma]),
                self.sigma_data,
            )
        return _Case(sample, clean_1CFHW, noisy_BCFHW, padding_B1HW, given)

    def _baselines(self, store: SampleStore) -> dict[str, torch.Tensor]:
        shape = self.cases[0].sample.latent_CFHW.shape
        training = (store.load(sample_id).latent_CFHW for sample_id in store.splits[TRAIN])
        fitted: Baselines = fit_baselines(
            (latent for latent in training if latent.shape == shape), self.sigma_data
        )
        rows = {}
        for name, estimate in (("gaussian", fitted.gaussian), ("linear", fitted.linear)):
            errors = [
                self._errors(case, estimate(case.noisy_BCFHW, self.sigma_B))
                for case in self.cases
                if case.sample.latent_CFHW.shape == shape
            ]
            rows[name] = torch.stack(errors).mean(0)
        return rows

    def _errors(self, case: _Case, estimate_BCFHW: torch.Tensor) -> torch.Tensor:
        return self._errors_but(case, estimate_BCFHW, case.given)

    def _errors_but(
        self, case: _Case, estimate_BCFHW: torch.Tensor, left_out: Given | None
    ) -> torch.Tensor:
        return weighted_error(
            estimate_BCFHW,
            case.clean_1CFHW,
            self.sigma_B,
            case.padding_B1HW,
            self.sigma_data,
            left_out.mask_B1F11 if left_out else None,
        )

    @torch.no_grad()
    def run(
        self,
        denoiser: Denoiser,
        ranks: Ranks,
        autocast: Autocast,
        check_stop: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Return the row for metrics.jsonl; `check_stop` may raise to leave it early.

        Data-parallel ranks share the cases; each rank returns the same row.
        """
        # over all frames that are not given, and over those that no case is given
        errors, rest = torch.zeros(2, len(self.cases), len(self.sigma_B))
        given = self.objective.given_frames
        most = given.index(max(given)) if given else 0
        for number, case in self._own_cases(ranks):
            estimates = []
            for part in range(0, len(self.sigma_B), self.micro_batch_size):
                check_stop()
                rows = slice(part, part + self.micro_batch_size)
                estimates.append(self._estimate(denoiser, case, rows, ranks.device, autocast))
            if number < len(self.cases):
                errors[number] = self._errors(case, torch.cat(estimates))
                # of the same sample
                fullest = self.cases[number - number % max(1, len(given)) + most].given
                rest[number] = self._errors_but(case, torch.cat(estimates), fullest)
        losses_B = ranks.sum_over_dp(errors).mean(0)
        rest = ranks.sum_over_dp(rest)
        row: dict[str, Any] = {
            "val_loss": losses_B.mean().item(),
            **{f"{name}_loss": b.mean().item() for name, b in self.baseline_rows.items()},
        }
        for index, frames in enumerate(given):
            row[f"val_loss_given_{frames}"] = rest[index :: len(given)].mean().item()
        for index, sigma in enumerate(self.sigma_B.tolist()):
            row[f"val_loss_sigma_{sigma:.3g}"] = losses_B[index].item()
            for name, baseline_B in self.baseline_rows.items():
                row[f"{name}_loss_sigma_{sigma:.3g}"] = baseline_B[index].item()
        return row

    def _own_cases(self, ranks: Ranks) -> Iterator[tuple[int, _Case]]:
        """Yield this rank's cases with their number, the same count on every rank.

        A rank without a case left takes part with one that does not count.
        """
        for first in range(0, len(self.cases), ranks.degrees.dp):
            number = first + ranks.dp_rank
            yield number, self.cases[min(number, len(self.cases) - 1)]

    def _estimate(
        self,
        denoiser: Denoiser,
        case: _Case,
        rows: slice,
        device: torch.device,
        autocast: Autocast,
    ) -> torch.Tensor:
        sigma_B, padding_B1HW = self.sigma_B[rows].to(device), case.padding_B1HW[rows].to(device)
        text_BTD = case.sample.text_TD.to(device).expand(len(sigma_B), -1, -1)

        def network(latent_BCFHW: torch.Tensor, c_noise_B: torch.Tensor) -> torch.Tensor:
            with autocast():
                return denoiser(latent_BCFHW, c_noise_B, text_BTD, padding_B1HW, case.sample.fps)

        noisy_BCFHW = case.noisy_BCFHW[rows].to(device)
        if case.given is None:
            return denoise(network, noisy_BCFHW, sigma_B, self.sigma_data).cpu()
        given = case.given.to(device)
        return given.denoise(network, noisy_BCFHW, sigma_B, self.sigma_data).cpu()
