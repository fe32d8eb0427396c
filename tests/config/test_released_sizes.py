"""The released models have the numbers of the published checkpoints."""

import pytest
import torch
from composing import loaded

from cosmos_hydra.models.transformer import build_transformer


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("7b", 7_236_192_256),
        ("14b", 14_267_149_312),
        ("7b_video2world", 7_236_208_640),
        ("14b_video2world", 14_267_169_792),
    ],
)
def test_a_released_model_has_its_true_number_of_parameters(name: str, num_parameters: int) -> None:
    with torch.device("meta"):
        transformer = build_transformer(loaded(f"model={name}").model)
    assert sum(parameter.numel() for parameter in transformer.parameters()) == num_parameters


@pytest.mark.parametrize(
    ("name", "layers", "heads", "width", "rope_scale"),
    [("7b", 28, 32, 4096, [2.0, 1.0, 1.0]), ("14b", 36, 40, 5120, [2.0, 2.0, 2.0])],
)
def test_a_released_model_has_its_true_shape(
    name: str, layers: int, heads: int, width: int, rope_scale: list[float]
) -> None:
    model = loaded(f"model={name}").model
    assert (model.num_layers, model.num_heads, model.num_heads * model.head_dim) == (
        layers,
        heads,
        width,
    )
    # the position scale shows in no parameter
    assert model.rope_scale == rope_scale
    assert (model.adaln_lora_dim, model.text_tokens, model.text_dim) == (256, 512, 1024)
    assert (model.latent_channels, model.patch_size, model.max_size) == (
        16,
        [1, 2, 2],
        [128, 240, 240],
    )
