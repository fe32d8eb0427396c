"""Matrix products of the blocks' large linear layers in 8 bits (torchao), one scale a tensor.

Weights stay what and where they are, under their names: each product rounds its own copies.
"""

from typing import Any

import torch
from torch import nn

from cosmos_hydra.config import Config, Linears, Precision
from cosmos_hydra.engines.torch.degrees import token_count
from cosmos_hydra.engines.torch.precision import effective_precision
from cosmos_hydra.errors import ConfigError

# those of all tokens; keys and values of the text take no time
LARGE = (
    *("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
    *("attn2.to_q", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2"),
)
DIVISOR = 16  # of every length, for the GPU's float8 products
ADA = (8, 9)  # the first compute capability that has them


def set_linears(transformer: Any, config: Config, device: torch.device, cp: int) -> None:
    """Have the blocks compute as parallel.linears says; `cp` ranks share the tokens.

    Raises: ConfigError where the device, the precision or the installation lacks float8.
    """
    if config.parallel.linears is Linears.default:
        return
    _check(config, device)
    tokens = config.trainer.micro_batch_size * token_count(config) // cp
    convert(transformer, is_padded=tokens % DIVISOR != 0)


def convert(transformer: nn.Module, is_padded: bool = False, is_emulated: bool = False) -> None:
    """Replace the large layers in place; `is_emulated` does without the hardware."""
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise ConfigError(
            "parallel.linears=float8 needs torchao; pip install cosmos-hydra[lowbit]"
        ) from error

    def is_large(module: Any, name: str) -> bool:
        if not (name.startswith("transformer_blocks.") and name.endswith(LARGE)):
            return False
        return all(length % DIVISOR == 0 for length in module.weight.shape)

    settings = Float8LinearConfig(pad_inner_dim=is_padded, emulate=is_emulated)
    convert_to_float8_training(transformer, module_filter_fn=is_large, config=settings)


def _check(config: Config, device: torch.device) -> None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < ADA:
        raise ConfigError(
            f"parallel.linears=float8 does not run on {device}; it needs a CUDA device of compute "
            f"capability 8.9 or more, so use parallel.linears=default"
        )
    if effective_precision(config.parallel.precision, device) is not Precision.bf16:
        raise ConfigError(
            f"parallel.linears=float8 does not go with parallel.precision="
            f"{config.parallel.precision}; use bf16, or parallel.linears=default"
        )
