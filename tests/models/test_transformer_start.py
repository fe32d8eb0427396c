"""Weights to start training from: a function of the seed, and none of them stays silent."""

from typing import Any

import pytest
import torch
from small_runs import initialised
from torch import nn

from cosmos_hydra.config import ModelConfig
from cosmos_hydra.diffusion.edm import denoise, weighted_error
from cosmos_hydra.models.transformer import Denoiser

FPS = 12.0


def transformer_of(seed: int = 0, num_layers: int = 2, num_heads: int = 2) -> nn.Module:
    model = ModelConfig(
        name="tiny",
        num_layers=num_layers,
        num_heads=num_heads,
        head_dim=24,
        adaln_lora_dim=8,
        text_dim=32,
        max_size=[4, 8, 8],
        rope_scale=[1.0, 1.0, 1.0],
    )
    return initialised(model, seed)


def inputs() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "latent_BCFHW": torch.randn(2, 16, 3, 4, 6, generator=generator),
        "c_noise_B": torch.tensor([-0.5, 0.5]),
        "text_BTD": torch.randn(2, 6, 32, generator=generator),
        "padding_B1HW": (torch.rand(2, 1, 4, 6, generator=generator) > 0.7).float(),
        "fps": FPS,
    }


def test_initial_weights_are_a_function_of_seed_and_name() -> None:
    torch.manual_seed(1)
    one = transformer_of().state_dict()
    torch.manual_seed(2)
    same, deeper, other = (
        transformer_of().state_dict(),
        transformer_of(num_layers=3).state_dict(),
        transformer_of(seed=1).state_dict(),
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    # more blocks leave the others as they are
    assert all(torch.equal(one[name], deeper[name]) for name in one)
    name = "transformer_blocks.0.attn1.to_q.weight"
    assert not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], one[name.replace("to_q", "to_k")])


def test_what_feeds_a_gate_and_the_output_start_at_zero() -> None:
    transformer = transformer_of()
    zero = {name for name, weight in transformer.named_parameters() if not weight.any()}
    second = [f"norm{n}.linear_2.weight" for n in (1, 2, 3)]
    blocks = {f"transformer_blocks.{block}.{name}" for block in (0, 1) for name in second}
    assert blocks | {"norm_out.linear_2.weight", "proj_out.weight"} <= zero
    assert all(name.endswith("linear_2.weight") or name == "proj_out.weight" for name in zero)
    with torch.no_grad():
        assert not Denoiser(transformer)(**inputs()).any()


def test_other_weights_keep_the_size_of_what_passes_through() -> None:
    for name, weight in transformer_of(num_heads=6).state_dict().items():
        if not weight.any():
            continue
        if weight.ndim == 1:
            assert (weight == 1).all(), name
        elif "pos_emb_" in name:
            assert 0.015 < weight.std() < 0.025, name
        else:
            assert weight.std() * weight.shape[1] ** 0.5 == pytest.approx(1, abs=0.1), name


def test_every_parameter_learns_after_two_steps() -> None:
    denoiser = Denoiser(transformer_of())
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-3)
    batch = inputs()
    clean = batch.pop("latent_BCFHW")
    del batch["c_noise_B"]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    sigma_B = torch.tensor([0.3, 2.0])
    for step in range(3):
        optimizer.zero_grad()
        noisy = clean + sigma_B[:, None, None, None, None] * noise
        estimate = denoise(lambda x, c: denoiser(x, c, **batch), noisy, sigma_B, 0.5)
        weighted_error(estimate, clean, sigma_B, batch["padding_B1HW"], 0.5).mean().backward()
        if step < 2:
            optimizer.step()
    silent = [
        name
        for name, parameter in denoiser.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert silent == []
