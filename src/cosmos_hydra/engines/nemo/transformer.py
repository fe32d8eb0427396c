"""The diffusion transformer on Megatron-core: the same function as models/transformer.py builds.

Around the blocks it is diffusers' own modules, under their names; `weights.py` knows how the
blocks' names and shapes relate. Each rank holds its tokens from the patch embedding to the output
projection: those of its cp rank, under sequence parallelism a part of these.
Legend: B batch, C channels, F latent frames, H W latent height/width, L tokens, S tokens of this
rank, D width, K head dim, T text tokens, X text dim.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers.models.transformers.transformer_cosmos import (
    CosmosAdaLayerNorm,
    CosmosEmbedding,
    CosmosLearnablePositionalEmbed,
    CosmosPatchEmbed,
)
from megatron.core import parallel_state
from megatron.core.enums import Fp8Recipe, ModelType
from megatron.core.fp8_utils import get_fp8_context
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from cosmos_hydra.config import ModelConfig
from cosmos_hydra.engines.nemo.weights import mark_parameters, sharded_state
from cosmos_hydra.engines.torch.sequence import Share, gather_tokens
from cosmos_hydra.models.size import input_channels

BASE_FPS = 24.0  # of the rotary time positions
THETA = 10000.0


class Decoder(MegatronModule):
    """The blocks, computed again in the backward pass and in FP8 as the config says."""

    def __init__(self, config: TransformerConfig, spec: ModuleSpec, **sizes: int) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            build_module(spec, config=config, layer_number=number + 1, **sizes)
            for number in range(config.num_layers)
        )

    def forward(self, x_SBD: torch.Tensor, *conditions: torch.Tensor) -> torch.Tensor:
        """Return the residual stream after the last block; see Block for the conditions."""
        is_delayed = self.config.fp8_recipe == Fp8Recipe.delayed
        with get_fp8_context(self.config) if is_delayed else nullcontext():
            for number, layer in enumerate(self.layers):
                with nullcontext() if is_delayed else self._fp8(number):
                    if self.training and self._is_recomputed(number):
                        x_SBD = self._recomputed(layer, x_SBD, *conditions)
                    else:
                        x_SBD = layer(x_SBD, *conditions)
        return x_SBD

    def _fp8(self, number: int) -> AbstractContextManager[Any]:
        return get_fp8_context(self.config, number)

    def _is_recomputed(self, number: int) -> bool:
        config = self.config
        is_all = config.recompute_method == "uniform"
        return config.recompute_granularity == "full" and (
            is_all or number < config.recompute_num_layers
        )

    def _recomputed(self, layer: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        # the other variant would run the conditions' backward pass once a block
        if self.config.fp8:
            from transformer_engine.pytorch import checkpoint as fp8_checkpoint

            return fp8_checkpoint(layer, *inputs, use_reentrant=False)
        return checkpoint(layer, *inputs, use_reentrant=False)


class MegatronTransformer(MegatronModule):
    """Take what diffusers' CosmosTransformer3DModel takes, of that what Denoiser gives it."""

    # what Megatron's training asks of a network
    model_type = ModelType.encoder_or_decoder
    share_embeddings_and_output_weights = False

    def __init__(self, model: ModelConfig, config: TransformerConfig, spec: ModuleSpec) -> None:
        super().__init__(config)
        self.model = model
        D, dtype = config.hidden_size, config.params_dtype
        patch_size, max_size = tuple(model.patch_size), tuple(model.max_size)
        cells = patch_size[0] * patch_size[1] * patch_size[2]
        self.patch_embed = CosmosPatchEmbed(input_channels(model), D, patch_size, bias=False)
        self.learnable_pos_embed = CosmosLearnablePositionalEmbed(D, max_size, patch_size)
        self.time_embed = CosmosEmbedding(D, D)
        self.norm_out = CosmosAdaLayerNorm(D, model.adaln_lora_dim)
        self.proj_out = nn.Linear(D, cells * model.latent_channels, bias=False)
        self.to(dtype)
        sizes = {"text_dim": model.text_dim, "adaln_lora_dim": model.adaln_lora_dim}
        self.decoder = Decoder(config, spec, **sizes)
        mark_parameters(self, config.sequence_parallel)

    def set_input_tensor(self, input_tensor: Any) -> None:
        """Take nothing from a pipeline stage before: there is none."""

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None
    ) -> dict[str, Any]:
        """Return this rank's parts of the weights as Megatron's checkpoints take them."""
        return sharded_state(self, prefix)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        fps: float,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
        """Return a tensor like the latent in hidden_states, [B, C, F, H, W], in a tuple.

        timestep is [B] and float32, encoder_hidden_states [B, T, X]. Every rank of tp and cp gets
        the same whole latent, and returns the same whole prediction.
        """
        dtype = self.config.params_dtype
        latent_BCFHW = hidden_states.to(dtype)
        grid = [n // p for n, p in zip(latent_BCFHW.shape[2:], self.model.patch_size, strict=True)]
        cp, tokens, group = _shares(self.config)
        x_BLD = self.patch_embed(latent_BCFHW).flatten(1, 3)
        x_SBD = tokens.of(x_BLD.transpose(0, 1), 0).float()
        position_S1D = tokens.of(self._positions(hidden_states[:1]).transpose(0, 1), 0)
        angle_LK = rotary_angles(self.model, grid, fps, hidden_states.device)
        angle_S11K = cp.of(angle_LK, 0)[:, None, None]
        shared_1BE, embedded_1BD = (part[None] for part in self.time_embed(latent_BCFHW, timestep))
        text_TBX = encoder_hidden_states.transpose(0, 1).to(dtype).contiguous()
        x_SBD = self.decoder(x_SBD, position_S1D, embedded_1BD, shared_1BE, text_TBX, angle_S11K)
        x_SBD = self.norm_out(x_SBD, embedded_1BD, shared_1BE).to(dtype)
        out_BSP = self.proj_out(x_SBD).transpose(0, 1)
        if tokens.size > 1:
            out_BSP = gather_tokens(out_BSP, group)
        return (self._unpatchified(out_BSP, grid),)

    def _positions(self, latent_1CFHW: torch.Tensor) -> torch.Tensor:
        # summed over three axes and normalised in float32
        tables = {n: p.float() for n, p in self.learnable_pos_embed.named_parameters()}
        return functional_call(self.learnable_pos_embed, tables, (latent_1CFHW.float(),))

    def _unpatchified(self, out_BLP: torch.Tensor, grid: list[int]) -> torch.Tensor:
        # of a token: height, width, time, channel; not the order of the patch embedding
        frames, height, width = self.model.patch_size
        x = out_BLP.unflatten(2, (height, width, frames, -1)).unflatten(1, grid)
        return x.permute(0, 7, 1, 6, 2, 4, 3, 5).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def rotary_angles(
    model: ModelConfig, grid: list[int], fps: float, device: torch.device
) -> torch.Tensor:
    """Return the rotation angles of all tokens, [L, K] float32: time, height, width, all twice.

    Source: diffusers models/transformers/transformer_cosmos.py, CosmosRotaryPosEmbed.
    """
    K = model.head_dim
    spatial = K // 6 * 2
    dims = (K - 2 * spatial, spatial, spatial)
    parts = []
    for axis, (size, dim, scale) in enumerate(zip(grid, dims, model.rope_scale, strict=True)):
        theta = THETA * scale ** (dim / (dim - 2))
        exponent = torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim
        place = torch.arange(size, device=device, dtype=torch.float32)
        if axis == 0:
            place = place / fps * BASE_FPS
        angle = torch.outer(place, 1.0 / theta**exponent)
        shape = [size if other == axis else 1 for other in range(3)]
        parts.append(angle.view(*shape, -1).expand(*grid, -1))
    return torch.cat(parts * 2, dim=-1).flatten(0, 2)


def _shares(config: TransformerConfig) -> tuple[Share, Share, Any]:
    """Return the tokens that attention sees, those of this rank, and the ranks that share all."""
    place, size = parallel_state.get_context_parallel_rank(), config.context_parallel_size
    cp = Share(place, size)
    if not config.sequence_parallel:
        return cp, cp, parallel_state.get_context_parallel_group()
    tp_rank = parallel_state.get_tensor_model_parallel_rank()
    tp = config.tensor_model_parallel_size
    tokens = Share(place * tp + tp_rank, size * tp)
    return cp, tokens, parallel_state.get_tensor_and_context_parallel_group()
