"""The transformer: diffusers' own network, with the mask channel."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.transformers import transformer_cosmos
from torch import nn

from cosmos_hydra.config import ModelConfig
from cosmos_hydra.models.transformer import Denoiser, build_transformer

T, D, FPS = 6, 32, 12.0


def tiny_model(num_layers: int = 2, **changes: Any) -> ModelConfig:
    sizes = {"num_heads": 2, "head_dim": 24, "adaln_lora_dim": 8, "text_dim": D, "text_tokens": T}
    limits = {"max_size": [4, 8, 8], "rope_scale": [1.0, 1.0, 1.0]}
    return ModelConfig(name="tiny", num_layers=num_layers, **{**sizes, **limits, **changes})


def randomise(transformer: nn.Module) -> None:
    """Give every weight some value, so that everything reaches the output."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    transformer = build_transformer(tiny_model())
    randomise(transformer)
    return Denoiser(transformer).eval()


def inputs(batch: int) -> dict[str, Any]:
    """Return a batch whose samples differ in everything, the padding mask too."""
    generator = torch.Generator().manual_seed(1)
    padding_B1HW = torch.zeros(batch, 1, 4, 6)
    for index in range(batch):
        padding_B1HW[index, :, :, 6 - index :] = 1.0
    return {
        "latent_BCFHW": torch.randn(batch, 16, 3, 4, 6, generator=generator),
        "c_noise_B": torch.linspace(-0.5, 0.5, batch),
        "text_BTD": torch.randn(batch, T, D, generator=generator),
        "padding_B1HW": padding_B1HW,
    }


def test_the_output_is_shaped_like_the_latent(denoiser: Denoiser) -> None:
    with torch.no_grad():
        assert denoiser(**inputs(2), fps=FPS).shape == (2, 16, 3, 4, 6)


def test_the_norm_of_queries_and_keys_has_the_epsilon_of_the_original(
    denoiser: Denoiser,
) -> None:
    """Tiny inputs, where 1e-6 and the 1e-5 of diffusers differ."""
    block = denoiser.transformer.transformer_blocks[1]
    x = 1e-3 * torch.randn(5, 24, generator=torch.Generator().manual_seed(2))
    for attention in (block.attn1, block.attn2):
        for norm in (attention.norm_q, attention.norm_k):
            expected = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.weight
            assert torch.allclose(norm(x), expected, atol=1e-5)
            assert expected.abs().max() > 0.1


def test_the_padding_mask_reaches_the_network(denoiser: Denoiser) -> None:
    batch = inputs(1)
    with torch.no_grad():
        plain = denoiser(**batch, fps=FPS)
        masked = denoiser(**{**batch, "padding_B1HW": torch.ones(1, 1, 4, 6)}, fps=FPS)
    assert (plain - masked).abs().max() > 0.05


def test_samples_of_a_batch_do_not_see_each_other(denoiser: Denoiser) -> None:
    batch = inputs(3)
    with torch.no_grad():
        together = denoiser(**batch, fps=FPS)
        for index in range(3):
            alone = {name: value[index : index + 1] for name, value in batch.items()}
            assert torch.allclose(
                denoiser(**alone, fps=FPS), together[index : index + 1], atol=1e-5
            )


@pytest.mark.parametrize("name", ["latent_BCFHW", "c_noise_B", "text_BTD"])
def test_every_input_matters(name: str, denoiser: Denoiser) -> None:
    batch = inputs(1)
    with torch.no_grad():
        changed = denoiser(**{**batch, name: batch[name] + 0.5}, fps=FPS)
        assert (denoiser(**batch, fps=FPS) - changed).abs().max() > 1e-3


def test_the_rate_scales_the_time_positions(denoiser: Denoiser) -> None:
    with torch.no_grad():
        slow, fast = (denoiser(**inputs(1), fps=fps) for fps in (6.0, 24.0))
    assert (slow - fast).abs().max() > 1e-4


def own_diffusers_model(model: ModelConfig) -> nn.Module:
    """Return the class as the release configures it, with its own mask channel."""
    return transformer_cosmos.CosmosTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=model.num_heads,
        attention_head_dim=model.head_dim,
        num_layers=model.num_layers,
        mlp_ratio=model.mlp_ratio,
        text_embed_dim=model.text_dim,
        adaln_lora_dim=model.adaln_lora_dim,
        max_size=tuple(model.max_size),
        patch_size=tuple(model.patch_size),
        rope_scale=tuple(model.rope_scale),
        concat_padding_mask=True,
        extra_pos_embed_type="learnable",
    )


def test_the_weights_fit_diffusers_own_model_and_give_the_same_output(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = own_diffusers_model(tiny_model()).eval()
    own.load_state_dict(denoiser.transformer.state_dict(), strict=True)
    for block in own.transformer_blocks:
        for attention in (block.attn1, block.attn2):
            attention.norm_q.eps = attention.norm_k.eps = 1e-6
    # it resizes the mask with torchvision, which is not installed; ours has the size already
    unchanged = SimpleNamespace(resize=lambda mask, size, interpolation: mask)
    transforms = SimpleNamespace(functional=unchanged, InterpolationMode=SimpleNamespace(NEAREST=0))
    monkeypatch.setattr(transformer_cosmos, "transforms", transforms, raising=False)
    batch = inputs(3)
    with torch.no_grad():
        ours = denoiser(**batch, fps=FPS)
        for index in range(3):
            expected = own(
                hidden_states=batch["latent_BCFHW"][index : index + 1],
                timestep=batch["c_noise_B"][index : index + 1],
                encoder_hidden_states=batch["text_BTD"][index : index + 1],
                fps=FPS,
                padding_mask=batch["padding_B1HW"][index : index + 1],
            ).sample
            assert torch.allclose(ours[index : index + 1], expected, atol=1e-5)
