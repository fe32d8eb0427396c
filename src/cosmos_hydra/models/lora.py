"""Adapters of a transformer: low-rank matrices that the peft library adds to linear layers.

A layer W becomes W + alpha / rank * B @ A (LoRA, arXiv 2106.09685). peft renames `to_q.weight` to
`to_q.base_layer.weight` and calls the matrices `to_q.lora_A.default.weight`; everywhere else they
are `to_q.weight`, `to_q.lora_A.weight` and `to_q.lora_B.weight`, as in files.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from cosmos_hydra.config import PeftConfig
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.seeds import torch_generator

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of names in peft's files


def add_adapters(transformer: nn.Module, peft: PeftConfig) -> None:
    """Freeze a transformer and add adapters, on the meta device; `initial_adapter` fills them.

    Raises: ConfigError without the peft library.
    """
    try:
        from peft import inject_adapter_in_model
        from peft.tuners.lora import LoraLayer
    except ImportError as error:
        raise ConfigError(
            "peft=lora needs the peft library; pip install cosmos-hydra[lora]"
        ) from error
    inject_adapter_in_model(_lora_config(peft), transformer, low_cpu_mem_usage=True)
    for module in transformer.modules():
        if isinstance(module, LoraLayer):
            # autocast casts, and peft need not before
            module.cast_input_dtype_enabled = False


def _lora_config(peft: PeftConfig, **options: Any) -> Any:
    from peft import LoraConfig

    # peft takes any factor but declares an int
    alpha = int(peft.alpha) if peft.alpha == int(peft.alpha) else peft.alpha
    return LoraConfig(r=peft.rank, lora_alpha=alpha, target_modules=list(peft.targets), **options)


def named_weights(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of the model itself, by the names they have without adapters."""
    for name, parameter in module.named_parameters():
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), parameter


def named_adapters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of the adapters, if there are any."""
    for name, parameter in module.named_parameters():
        if ".lora_" in name:
            yield name.replace(".default.", "."), parameter


def initial_adapter(name: str, shape: torch.Size, seed: int) -> torch.Tensor:
    """Return an adapter's first values, a function of (seed, name): A as peft's, B zeros."""
    if ".lora_B." in name:
        return torch.zeros(shape)
    # drawn on the CPU whatever the device
    generator = torch_generator(seed, "init", name)
    return nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5), generator=generator)


def write_adapter(
    folder: Path, adapters: dict[str, torch.Tensor], peft: PeftConfig, base: str | None
) -> None:
    """Write adapters as peft's own files; `base` is the folder of the weights they belong to."""
    folder.mkdir()
    options = _lora_config(peft, inference_mode=True, base_model_name_or_path=base).to_dict()
    plain = {
        key: sorted(value) if isinstance(value, set) else value for key, value in options.items()
    }
    (folder / CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")
    # diffusers reads the header and not the config; a second entry would come in any order
    facts = {f"{PREFIX}{key}": plain[key] for key in ("r", "lora_alpha", "target_modules")}
    header = {"lora_adapter_metadata": json.dumps(facts)}
    named = {f"{PREFIX}{name}": tensor for name, tensor in adapters.items()}
    save_file(named, folder / WEIGHTS, metadata=header)
