"""The attention kernel: the asked one or the best that works, all with the same result."""

from pathlib import Path

import pytest
import torch
from conftest import SMALL, Command
from diffusers.models.transformers.transformer_cosmos import CosmosAttnProcessor2_0
from small_runs import initialised, small_config

from cosmos_hydra.config import Attention
from cosmos_hydra.engines.torch.attention import set_attention
from cosmos_hydra.engines.torch.kernels import effective_attention, kernel_of
from cosmos_hydra.errors import ConfigError

CPU = torch.device("cpu")


def test_a_cpu_takes_flash_attention_and_what_it_is_told() -> None:
    assert effective_attention(small_config(Path()), CPU) is Attention.flash
    asked = small_config(Path(), "parallel.attention=math")
    assert effective_attention(asked, CPU) is Attention.math


@pytest.mark.parametrize("attention", ["cudnn", "efficient"])
def test_a_kernel_that_does_not_run_here_is_refused(attention: str) -> None:
    config = small_config(Path(), f"parallel.attention={attention}")
    with pytest.raises(ConfigError) as error:
        effective_attention(config, CPU)
    assert str(error.value) == (
        f"parallel.attention={attention} does not run on cpu in fp32 with model.head_dim=64; "
        f"use parallel.attention=auto"
    )


def test_a_ring_takes_flash_attention_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    ring = ("parallel.cp=2", "model.num_heads=3")
    assert effective_attention(small_config(Path(), *ring), CPU) is Attention.flash
    asked = small_config(Path(), *ring, "parallel.attention=math")
    with pytest.raises(ConfigError) as error:
        effective_attention(asked, CPU)
    assert str(error.value) == (
        "parallel.cp=2 does not divide the heads of a rank, and parallel.attention=flash, which "
        "that needs, does not run on cpu in fp32 with model.head_dim=64 or is not allowed; use "
        "another degree, or parallel.precision=bf16 parallel.attention=auto"
    )


def test_the_command_refuses_it_in_one_line(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    typed = ("stage=post_train", *SMALL, "parallel.attention=cudnn")
    outcome = command(*typed, f"paths.samples={small_samples / 'samples'}", cwd=tmp_path)
    assert (outcome.code, outcome.stderr.count("\n")) == (2, 1)
    assert outcome.stderr.startswith("cosmos-hydra: parallel.attention=cudnn does not run on cpu ")


@pytest.mark.parametrize("attention", [Attention.flash, Attention.math], ids=str)
def test_blocks_compute_what_those_of_diffusers_do(attention: Attention) -> None:
    model = small_config(Path()).model
    transformer = initialised(model, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in transformer.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    latent_BCFHW = torch.randn(2, model.latent_channels + 1, 2, 8, 8, generator=generator)
    text_BTD = torch.randn(2, model.text_tokens, model.text_dim, generator=generator)

    def run() -> torch.Tensor:
        sigma_B = torch.tensor([0.3, -1.0])
        with torch.no_grad():
            return transformer(latent_BCFHW, sigma_B, text_BTD, fps=24.0, return_dict=False)[0]

    set_attention(transformer, kernel_of(attention))
    found = run()
    for block in transformer.transformer_blocks:
        for module in (block.attn1, block.attn2):
            module.set_processor(CosmosAttnProcessor2_0())
    torch.testing.assert_close(found, run(), rtol=1e-5, atol=1e-5)
