"""The numbers of a model and of its parallelism as Megatron-core's TransformerConfig."""

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.functional import gelu

from cosmos_hydra.config import Config, Precision, Recompute
from cosmos_hydra.engines.torch.degrees import Degrees
from cosmos_hydra.engines.torch.precision import effective_precision
from cosmos_hydra.models.size import width
from cosmos_hydra.models.transformer import QK_NORM_EPS


def transformer_config(config: Config, degrees: Degrees, device: torch.device) -> TransformerConfig:
    """Return what Megatron's modules are built from; weights are not initialised."""
    model, is_cuda = config.model, device.type == "cuda"
    precision = effective_precision(config.parallel.precision, device)
    is_bf16 = precision is Precision.bf16
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=width(model),
        num_attention_heads=model.num_heads,
        kv_channels=model.head_dim,
        ffn_hidden_size=int(width(model) * model.mlp_ratio),
        activation_func=gelu,
        # its fused kernel computes the tanh approximation
        bias_activation_fusion=False,
        add_bias_linear=False,
        normalization="RMSNorm",
        layernorm_epsilon=QK_NORM_EPS,
        qk_layernorm=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        apply_rope_fusion=is_cuda and _has_transformer_engine(),
        tensor_model_parallel_size=degrees.tp,
        context_parallel_size=degrees.cp,
        # heads for tokens where they divide, else keys and values go round
        cp_comm_type="p2p" if degrees.needs_ring(model.num_heads) else "a2a",
        sequence_parallel=config.parallel.sequence_parallel and degrees.tp > 1,
        bf16=is_bf16,
        params_dtype=torch.bfloat16 if is_bf16 else torch.float32,
        pipeline_dtype=torch.bfloat16 if is_bf16 else torch.float32,
        use_cpu_initialization=not is_cuda,
        perform_initialization=False,
        **recompute_options(config),
    )


def recompute_options(config: Config) -> dict[str, Any]:
    """Return Megatron's names for what blocks compute again."""
    parallel = config.parallel
    if parallel.recompute is Recompute.none:
        return {}
    excepted = parallel.recompute_except
    return {
        "recompute_granularity": "full",
        "recompute_method": "block" if excepted else "uniform",
        "recompute_num_layers": max(0, config.model.num_layers - excepted) if excepted else 1,
    }


def _has_transformer_engine() -> bool:
    from megatron.core.extensions import transformer_engine

    return bool(transformer_engine.HAVE_TE)
