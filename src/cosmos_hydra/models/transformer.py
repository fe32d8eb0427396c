"""The diffusion transformer: diffusers' CosmosTransformer3DModel, built from our config.

Unusual choices:
- the padding-mask channel is concatenated here and counted in `in_channels`, so that any batch
  size works and torchvision is not needed; the weights are the same;
- q/k norm epsilon is 1e-6 as in the original, not the class's 1e-5;
- diffusers' default initialisation is not made for training from scratch: `initial` is.
Legend: B batch, C channels, F latent frames, H W latent height/width, T text tokens, D text dim.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cosmos_hydra.config import ModelConfig
from cosmos_hydra.models.size import input_channels
from cosmos_hydra.seeds import torch_generator

QK_NORM_EPS = 1e-6
POSITION_STD = 0.02


def build_transformer(model: ModelConfig) -> Any:
    """Return the transformer with uninitialised or default weights on the current device."""
    from diffusers import CosmosTransformer3DModel

    transformer = CosmosTransformer3DModel(
        in_channels=input_channels(model),
        out_channels=model.latent_channels,
        num_attention_heads=model.num_heads,
        attention_head_dim=model.head_dim,
        num_layers=model.num_layers,
        mlp_ratio=model.mlp_ratio,
        text_embed_dim=model.text_dim,
        adaln_lora_dim=model.adaln_lora_dim,
        max_size=tuple(model.max_size),
        patch_size=tuple(model.patch_size),
        rope_scale=tuple(model.rope_scale),
        concat_padding_mask=False,
        extra_pos_embed_type="learnable",
    )
    for block in transformer.transformer_blocks:
        for attention in (block.attn1, block.attn2):
            attention.norm_q.eps = attention.norm_k.eps = QK_NORM_EPS
    return transformer


def initial(name: str, shape: torch.Size, seed: int) -> torch.Tensor:
    """Return a parameter's first values for training from scratch, a function of (seed, name).

    Linear layers get normal weights of variance 1/fan_in; position tables a truncated normal of
    standard deviation 0.02; all that feeds a gate, and the output projection, zeros, so that every
    block starts as the identity and the first prediction is zero (adaLN-Zero, arXiv 2212.09748).
    """
    # drawn on the CPU whatever the device
    generator = torch_generator(seed, "init", name)
    is_modulation = name.endswith("linear_2.weight")
    if name == "proj_out.weight" or is_modulation:
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    if "pos_emb_" in name:
        return nn.init.trunc_normal_(torch.empty(shape), std=POSITION_STD, generator=generator)
    return torch.randn(shape, generator=generator) * shape[1] ** -0.5


class Denoiser(nn.Module):
    """The network F of the EDM formulation: scaled noisy latent to raw prediction."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        latent_BCFHW: torch.Tensor,
        c_noise_B: torch.Tensor,
        text_BTD: torch.Tensor,
        padding_B1HW: torch.Tensor,
        fps: float,
    ) -> torch.Tensor:
        """Return a tensor like latent_BCFHW.

        latent_BCFHW is c_in * noisy latent; padding_B1HW is 1 where a clip is padded, at latent
        resolution; fps, one for the batch, scales the rotary time positions.
        """
        frames = latent_BCFHW.shape[2]
        padding_B1FHW = padding_B1HW[:, :, None].expand(-1, -1, frames, -1, -1)
        return self.transformer(
            hidden_states=torch.cat([latent_BCFHW, padding_B1FHW.to(latent_BCFHW)], dim=1),
            timestep=c_noise_B,
            encoder_hidden_states=text_BTD.to(latent_BCFHW.dtype),
            fps=fps,
            return_dict=False,
        )[0]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Have a training module evaluate in the block, and train again whichever way that ends."""
    module.eval()
    try:
        yield
    finally:
        module.train()
