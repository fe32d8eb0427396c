"""From what a path was found to be to weights that fit a model, whatever the format."""

from cosmos_hydra.config import ModelConfig
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.models.size import input_channels
from cosmos_hydra.reading import read_json, shown
from cosmos_hydra.weights import diffusers
from cosmos_hydra.weights.base import base_of
from cosmos_hydra.weights.locate import Format, Located
from cosmos_hydra.weights.original import Original
from cosmos_hydra.weights.source import Shapes, Source
from cosmos_hydra.weights.torch_dist import open_torch_dist
from cosmos_hydra.weights.trained import Merged, Random, Stored, adapters_in
from cosmos_hydra.weights.zarr import open_zarr


def open_weights(weights: Located, wanted: Shapes, elsewhere: str | None = None) -> Source:
    """Return located weights, none of them read yet.

    `elsewhere` is where the weights below adapters may lie now. Raises: StageError listing every
    missing, unexpected and misshapen weight, or when something is gone, changed or unreadable.
    """
    source = _open(weights, wanted, elsewhere)
    source.check(wanted)
    return source


def _open(weights: Located, wanted: Shapes, elsewhere: str | None) -> Source:
    match weights.format:
        case Format.diffusers:
            return diffusers.Folder(weights.path)
        case Format.original:
            return Original(weights.path)
        case Format.zarr:
            return open_zarr(weights.path)
        case Format.torch_dist:
            return open_torch_dist(weights.path)
    found = weights.checkpoint
    assert found is not None
    if found.peft is None:
        return Stored(found.state)
    base = base_of(found, elsewhere)
    below = _open(base, wanted, elsewhere) if isinstance(base, Located) else Random(wanted, base)
    return Merged(below, adapters_in(found.state), found.peft)


def check_architecture(weights: Located, model: ModelConfig, key: str) -> None:
    """Refuse weights whose architecture is not the configured one.

    Raises: ConfigError listing every number that differs.
    """
    if weights.config is not None:
        found, wanted = read_json(weights.config), diffusers.config_of(model)
    else:
        found, wanted = _sizes(_open(weights, {}, None)), _wanted_sizes(model)
    differing = [
        f"{name} {shown(found[name])} (model={model.name} has {wanted[name]})"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    if differing:
        raise ConfigError(
            f"{key}={weights.path} is another architecture: {', '.join(differing)}; "
            f"choose the model= it belongs to, or other weights"
        )


def _wanted_sizes(model: ModelConfig) -> dict[str, int]:
    return {
        "num_layers": model.num_layers,
        "num_heads * head_dim": model.num_heads * model.head_dim,
        "head_dim": model.head_dim,
        "adaln_lora_dim": model.adaln_lora_dim,
        "text_dim": model.text_dim,
        "latent_channels": model.latent_channels,
        "input channels": input_channels(model),
    }


def _sizes(source: Source) -> dict[str, int]:
    """Return what the shapes of weights say of their architecture; less where some are missing."""
    cells = 4  # of a token: 1 x 2 x 2 in all these models
    places = {
        "num_heads * head_dim": ("patch_embed.proj.weight", 0, 1),
        "head_dim": ("transformer_blocks.0.attn1.norm_q.weight", 0, 1),
        "adaln_lora_dim": ("norm_out.linear_1.weight", 0, 1),
        "text_dim": ("transformer_blocks.0.attn2.to_k.weight", 1, 1),
        "latent_channels": ("proj_out.weight", 0, cells),
        "input channels": ("patch_embed.proj.weight", 1, cells),
    }
    sizes = {
        size: source.entries[name].shape[axis] // divisor
        for size, (name, axis, divisor) in places.items()
        if name in source.entries and len(source.entries[name].shape) > axis
    }
    blocks = {name.split(".")[1] for name in source.entries if name.startswith("transformer_bl")}
    return {**sizes, "num_layers": len(blocks)}
