"""What the ranks of a test do where each notes what it held itself, not rank 0 for all."""

import copy
import hashlib
from pathlib import Path
from typing import Any

import torch
from distributed_cases import CPU, noisy_trainer, train, whole
from small_runs import small_config

from cosmos_hydra import place
from cosmos_hydra.config import Sampler
from cosmos_hydra.data.clips import TRAIN
from cosmos_hydra.data.loader import Batch
from cosmos_hydra.diffusion.generation import Request, generate_latent
from cosmos_hydra.engines.torch.gradients import is_split_over_tp
from cosmos_hydra.engines.torch.parts import local
from cosmos_hydra.engines.torch.trainer import Trainer


def notes_of(folder: Path, world_size: int) -> list[Any]:
    """Return what each rank has noted."""
    return [
        torch.load(folder / f"notes_{rank}.pt", weights_only=True) for rank in range(world_size)
    ]


def note_twice(samples: Path, overrides: tuple[str, ...], out: Path) -> None:
    """Do a step, generate with guidance, and both again, without an update; note all of it."""
    config = small_config(samples, *overrides)
    trainer = noisy_trainer(config, out)
    batches = trainer.loader().load(3)
    before = copy.deepcopy(batches)
    named = list(trainer.transformer.named_parameters())
    losses, latents, gradients = [], [], {}
    for _ in range(2):
        trainer.optimizer.zero_grad()
        losses.append(trainer.stepper.compute(3, batches).losses)
        gradients = {n: whole(p.grad).clone() for n, p in named if p.grad is not None}
        latents.append(generate(trainer))
    changed = [
        name
        for batch, old in zip(batches, before, strict=True)
        for name, value in vars(batch).items()
        if isinstance(value, torch.Tensor) and not torch.equal(value, vars(old)[name])
    ]
    notes = {
        "losses": losses,
        "gradients": gradients,
        "latents": latents,
        "changed": changed,
        "split over tp": [name for name, parameter in named if is_split_over_tp(parameter)],
    }
    torch.save(notes, out / f"notes_{place.rank()}.pt")


def generate(trainer: Trainer) -> torch.Tensor:
    """Return the latent of a preview."""
    sample = trainer.store.load(trainer.store.splits[TRAIN][0])
    C, F, H, W = sample.latent_CFHW.shape
    request = Request(
        text_TD=sample.text_TD,
        negative_TD=None,
        shape_CFHW=(C, F, H, W),
        fps=sample.fps,
        seed=1,
        steps=2,
        guidance=3.0,
        sampler=Sampler.res_2ab,
    )
    return generate_latent(trainer.denoiser, request, 0.5, CPU, trainer.autocast)


def note_training(samples: Path, overrides: tuple[str, ...], run: Path) -> None:
    """Train; note after each step the batches and a digest of the weights that a rank holds."""
    notes: list[dict[str, Any]] = []
    update = Trainer._update

    def noting(self: Trainer, ids: list[str], batches: list[Batch]) -> Any:
        rows = update(self, ids, batches)
        weights = hashlib.sha256()
        for parameter in self.transformer.parameters():
            part = local(parameter)
            weights.update(part.detach().numpy().tobytes())
        drawn = {
            position: {
                "sigma": batch.sigma_B[row],
                "noise": batch.noise_BCFHW[row],
                "keeps text": bool(batch.text_BTD[row].any()),
            }
            for batch in batches
            for row, position in enumerate(batch.positions)
        }
        notes.append({"ids": ids, "drawn": drawn, "weights": weights.hexdigest()})
        return rows

    Trainer._update = noting  # type: ignore[method-assign]
    run.mkdir(exist_ok=True)
    train(samples, overrides, run)
    torch.save(notes, run / f"notes_{place.rank()}.pt")
