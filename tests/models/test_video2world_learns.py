"""A small network learns to look at the frame that it is given."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from small_runs import initialised, small_config

from cosmos_hydra.config import ModelConfig, ObjectiveConfig
from cosmos_hydra.data.loader import Batch, collate
from cosmos_hydra.data.store import Sample
from cosmos_hydra.diffusion.edm import draw_noise
from cosmos_hydra.engines.torch.step import losses
from cosmos_hydra.models.transformer import Denoiser

SIZES = ("num_layers=1", "num_heads=2", "head_dim=32", "max_size=[4,8,8]", "condition_mask=true")
STEPS, NEW = 300, 1_000_000
# almost all of the second frame is noise
LOUD = {"p_mean": 1.5, "p_std": 1e-6}


def still_pictures(model: ModelConfig, objective: ObjectiveConfig, step: int, count: int) -> Batch:
    """Return a batch of pictures that nobody has seen, each shown for two latent frames."""
    items = []
    for number in range(count):
        generator = torch.Generator().manual_seed(step * 1000 + number)
        latent_CFHW = torch.randn(16, 1, 2, 4, generator=generator).expand(-1, 2, -1, -1)
        text_TD = torch.zeros(model.text_tokens, model.text_dim)
        sample = Sample(str(number), latent_CFHW, text_TD, torch.zeros(1, 2, 4), 12.0, "")
        noise = draw_noise(latent_CFHW.shape, objective, 0, step, sample.id, 0)
        items.append((number, sample, noise))
    (batch,) = collate(items, count)
    return batch


def test_the_given_frame_tells_the_next_one_of_a_still_picture() -> None:
    typed = ("objective.given_frames=[0,1]", "objective.p_mean=1.0")
    model = small_config(Path(), *(f"model.{one}" for one in (*SIZES, *typed))).model
    denoiser = Denoiser(initialised(model, seed=0))
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-2)
    for step in range(STEPS):
        batch = still_pictures(model, model.objective, step, count=16)
        losses(denoiser, batch, 0.5, nullcontext).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    found = []
    for frames in (0, 1):
        objective = replace(model.objective, given_frames=[frames], **LOUD)
        with torch.no_grad():
            batch = still_pictures(model, objective, NEW, count=64)
            found.append(losses(denoiser, batch, 0.5, nullcontext).mean().item())
    nothing_given, first_given = found
    assert nothing_given > 0.95
    assert first_given < 0.85
