"""Sizes by formula, against the network itself."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cosmos_hydra.config import ModelConfig
from cosmos_hydra.models.size import forward_flop, parameter_count
from cosmos_hydra.models.transformer import Denoiser, build_transformer

# as in conf/model
TINY = {"num_layers": 2, "num_heads": 3, "head_dim": 64, "adaln_lora_dim": 64}
LARGE_7B = {"num_layers": 28, "num_heads": 32, "head_dim": 128, "adaln_lora_dim": 256}
LARGE_14B = {"num_layers": 36, "num_heads": 40, "head_dim": 128, "adaln_lora_dim": 256}
ODD = {"num_layers": 3, "num_heads": 5, "head_dim": 26, "adaln_lora_dim": 7, "mlp_ratio": 2.3}
OTHER = {"text_dim": 40, "latent_channels": 4, "max_size": [9, 15, 34], "patch_size": [1, 3, 2]}


def model(**sizes: Any) -> ModelConfig:
    return ModelConfig(name="any", rope_scale=[1.0, 1.0, 1.0], **sizes)


@pytest.mark.parametrize(
    "sizes", [TINY, LARGE_7B, LARGE_14B, ODD, {**ODD, **OTHER}, {**TINY, "num_layers": 1}]
)
def test_the_formula_counts_the_parameters_of_the_network(sizes: dict[str, Any]) -> None:
    with torch.device("meta"):
        network = build_transformer(model(**sizes))
    counted = sum(parameter.numel() for parameter in network.parameters())
    assert parameter_count(model(**sizes)) == counted


def test_the_released_sizes_have_the_published_number_of_parameters() -> None:
    assert parameter_count(model(**LARGE_7B)) == 7_236_192_256
    assert parameter_count(model(**LARGE_14B)) == 14_267_149_312


def test_the_count_needs_no_torch() -> None:
    code = "import cosmos_hydra.models.size, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_operations_are_those_that_torch_counts() -> None:
    """All but embeddings and modulations, which the many tokens of a clip outweigh."""
    sizes = model(**{**TINY, "adaln_lora_dim": 8}, text_tokens=64, text_dim=256)
    F, H, W = 4, 32, 32
    with torch.device("meta"):
        denoiser = Denoiser(build_transformer(sizes))
        inputs = (torch.zeros(1, 16, F, H, W), torch.zeros(1), torch.zeros(1, 64, 256))
        padding_B1HW = torch.zeros(1, 1, H, W)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        denoiser(*inputs, padding_B1HW, 24.0)
    expected = forward_flop(sizes, F * H * W // 4)
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.03)
