"""One block of the transformer, from Megatron-core modules that a layer spec names.

The spec is Transformer Engine's on CUDA, and Megatron's own linear layers with PyTorch's attention
elsewhere. Between the three parts of a block lies diffusers' adaLN, so its weights keep their
shapes; the residual stream is float32 whatever the linear layers compute in.
Legend: S tokens of this rank, B batch, D width, N heads of this rank, K head dim, T text tokens,
X text dim.
"""

from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.transformer_cosmos import CosmosAdaLayerNormZero
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.utils import split_tensor_along_last_dim
from megatron.core.transformer.attention import Attention, SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from cosmos_hydra.engines.torch.attention import Ulysses


@dataclass
class CrossAttentionSubmodules:
    """Megatron's, with the norms of queries and keys."""

    linear_q: type
    linear_kv: type
    core_attention: type
    linear_proj: type
    q_layernorm: type
    k_layernorm: type


@dataclass
class BlockSubmodules:
    """The parts of a block between its modulations."""

    full_self_attention: ModuleSpec
    cross_attention: ModuleSpec
    mlp: ModuleSpec


class HeadNorm(nn.RMSNorm):
    """The norm of queries or keys, as a layer spec builds it."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)


class SdpaAttention(MegatronModule):
    """PyTorch's attention in the place of Transformer Engine's; Megatron's own needs CUDA."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        cp_comm_type: str | None = None,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config)
        self.kernel: Any = scaled_dot_product_attention
        if config.context_parallel_size > 1:
            assert pg_collection is not None
            self.kernel = Ulysses(self.kernel, pg_collection.cp)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: None,
        **unused: Any,
    ) -> torch.Tensor:
        """Return [S, B, N * K] from queries, keys and values [S, B, N, K]."""
        qkv_BNSK = (x_SBNK.permute(1, 2, 0, 3) for x_SBNK in (query, key, value))
        out_BNSK = self.kernel(*qkv_BNSK)
        return out_BNSK.permute(2, 0, 1, 3).flatten(2)


class CrossAttention(Attention):
    """Attention to the text: Megatron's takes neither another width nor norms of its own.

    Every rank holds the whole text, so that neither sequence nor context parallelism cuts it.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: CrossAttentionSubmodules,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        text_dim: int,
    ) -> None:
        super().__init__(
            config=_changed(config, context_parallel_size=1),
            submodules=submodules,
            layer_number=layer_number,
            attn_mask_type=attn_mask_type,
            attention_type="cross",
        )
        linear = {"init_method": config.init_method, "gather_output": False, "bias": False}
        linear |= {"skip_bias_add": False, "is_expert": False, "tp_group": self.pg_collection.tp}
        self.linear_q = build_module(
            submodules.linear_q,
            config.hidden_size,
            self.query_projection_size,
            config=config,
            tp_comm_buffer_name="qkv",
            **linear,
        )
        self.linear_kv = build_module(
            submodules.linear_kv,
            text_dim,
            2 * self.kv_projection_size,
            config=_changed(config, sequence_parallel=False, tp_comm_overlap=False),
            tp_comm_buffer_name="qkv",
            **linear,
        )
        norm = {"hidden_size": self.hidden_size_per_attention_head, "eps": config.layernorm_epsilon}
        self.q_layernorm = build_module(submodules.q_layernorm, config=config, **norm)
        self.k_layernorm = build_module(submodules.k_layernorm, config=config, **norm)

    def get_query_key_value_tensors(
        self, hidden_states: torch.Tensor, key_value_states: torch.Tensor, split_qkv: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return q [S, B, N, K], and k and v [T, B, N, K]."""
        heads, head_dim = self.num_attention_heads_per_partition, self.key_hidden_size
        query, _ = self.linear_q(hidden_states)
        key_value, _ = self.linear_kv(key_value_states)
        key_value = key_value.unflatten(2, (heads, 2 * head_dim))
        key, value = split_tensor_along_last_dim(key_value, 2)
        return (
            self.q_layernorm(query.unflatten(2, (heads, head_dim))),
            self.k_layernorm(key.contiguous()),
            value.contiguous(),
        )


class Block(MegatronModule):
    """Self-attention, cross-attention and MLP, each modulated, gated and added."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: BlockSubmodules,
        layer_number: int,
        text_dim: int,
        adaln_lora_dim: int,
    ) -> None:
        super().__init__(config)
        D = config.hidden_size
        self.norm1, self.norm2, self.norm3 = (
            CosmosAdaLayerNormZero(D, adaln_lora_dim).to(config.params_dtype) for _ in range(3)
        )
        attention: dict[str, Any] = {
            "config": config,
            "layer_number": layer_number,
            "attn_mask_type": AttnMaskType.no_mask,
        }
        self.full_self_attention = build_module(
            submodules.full_self_attention, cp_comm_type=config.cp_comm_type, **attention
        )
        self.cross_attention = build_module(
            submodules.cross_attention, text_dim=text_dim, **attention
        )
        self.mlp = build_module(
            submodules.mlp, config=config, ffn_hidden_size=config.ffn_hidden_size
        )

    def forward(
        self,
        x_SBD: torch.Tensor,
        position_S1D: torch.Tensor,
        embedded_1BD: torch.Tensor,
        shared_1BE: torch.Tensor,
        text_TBX: torch.Tensor,
        angle_S11K: torch.Tensor,
    ) -> torch.Tensor:
        """Return the next residual stream.

        `embedded_1BD` is the normed time embedding, `shared_1BE` the modulation that all blocks
        share, E = 3 * D; `angle_S11K` is of all tokens that attention sees.
        """

        def modulated(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
            normed_SBD, gate_1BD = norm(x_SBD, embedded_1BD, shared_1BE)
            return normed_SBD.to(self.config.params_dtype), gate_1BD

        x_SBD = x_SBD + position_S1D
        normed_SBD, gate_1BD = modulated(self.norm1)
        out_SBD, _ = self.full_self_attention(normed_SBD, None, rotary_pos_emb=angle_S11K)
        x_SBD = x_SBD + gate_1BD * out_SBD
        normed_SBD, gate_1BD = modulated(self.norm2)
        out_SBD, _ = self.cross_attention(normed_SBD, None, key_value_states=text_TBX)
        x_SBD = x_SBD + gate_1BD * out_SBD
        normed_SBD, gate_1BD = modulated(self.norm3)
        out_SBD, _ = self.mlp(normed_SBD)
        return x_SBD + gate_1BD * out_SBD


def block_spec(device: torch.device) -> ModuleSpec:
    """Return what a block is made of: Transformer Engine on CUDA where it is installed."""
    column, row, attention, norm = ColumnParallelLinear, RowParallelLinear, SdpaAttention, HeadNorm
    if device.type == "cuda":
        from megatron.core.extensions import transformer_engine as te

        if te.HAVE_TE:
            column, row = te.TEColumnParallelLinear, te.TERowParallelLinear
            attention, norm = te.TEDotProductAttention, te.TENorm
    common: dict[str, Any] = {"core_attention": attention, "linear_proj": row}
    common |= {"q_layernorm": norm, "k_layernorm": norm}
    self_attention = SelfAttentionSubmodules(linear_qkv=column, **common)
    cross_attention = CrossAttentionSubmodules(linear_q=column, linear_kv=column, **common)
    mlp = MLPSubmodules(linear_fc1=column, linear_fc2=row)
    return ModuleSpec(
        module=Block,
        submodules=BlockSubmodules(
            full_self_attention=ModuleSpec(module=SelfAttention, submodules=self_attention),
            cross_attention=ModuleSpec(module=CrossAttention, submodules=cross_attention),
            mlp=ModuleSpec(module=MLP, submodules=mlp),
        ),
    )


def _changed(config: TransformerConfig, **values: Any) -> TransformerConfig:
    changed = copy(config)  # not dataclasses.replace: that derives other fields again
    for name, value in values.items():
        setattr(changed, name, value)
    return changed
