"""Transformer weights in diffusers layout: config.json and safetensors, one file or sharded.

Written config.json says what the release's says: in_channels without the padding channel and
concat_padding_mask true, so that diffusers loads the folder as it is.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from cosmos_hydra import files
from cosmos_hydra.config import ModelConfig
from cosmos_hydra.errors import ConfigError, StageError

CLASS_NAME = "CosmosTransformer3DModel"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def config_of(model: ModelConfig) -> dict[str, Any]:
    """Return config.json of a model."""
    return {
        "_class_name": CLASS_NAME,
        "in_channels": model.latent_channels,
        "out_channels": model.latent_channels,
        "num_attention_heads": model.num_heads,
        "attention_head_dim": model.head_dim,
        "num_layers": model.num_layers,
        "mlp_ratio": model.mlp_ratio,
        "text_embed_dim": model.text_dim,
        "adaln_lora_dim": model.adaln_lora_dim,
        "max_size": model.max_size,
        "patch_size": model.patch_size,
        "rope_scale": model.rope_scale,
        "concat_padding_mask": True,
        "extra_pos_embed_type": "learnable",
    }


def is_transformer(folder: Path) -> bool:
    """Return whether a folder holds a transformer in diffusers layout."""
    try:
        found = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("_class_name") == CLASS_NAME


def check_config(folder: Path, model: ModelConfig, key: str) -> None:
    """Refuse a folder whose architecture is not the configured one.

    Raises: ConfigError listing every number that differs.
    """
    found = json.loads((folder / "config.json").read_text())
    wanted = config_of(model)
    differing = [
        f"{name} {found[name]} (model={model.name} has {wanted[name]})"
        for name in wanted
        if name in found and _plain(found[name]) != _plain(wanted[name])
    ]
    if differing:
        raise ConfigError(f"{key}={folder} is another architecture: {', '.join(differing)}")


def _plain(value: Any) -> Any:
    return [float(part) for part in value] if isinstance(value, (list, tuple)) else value


def save_transformer(transformer: nn.Module, model: ModelConfig, folder: Path) -> None:
    """Write a transformer in the dtype it has; the caller makes the folder crash-safe."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: t.detach().cpu().contiguous() for name, t in transformer.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_of(model), indent=2) + "\n")


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder, those of the index if there is one.

    Raises: StageError when there are none or the index names a file that is not in the folder.
    """
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StageError(f"{index} is no index of weights ({error})") from error
        paths = [folder / name for name in names]
        wrong = [path.name for path in paths if path.parent != folder or not path.is_file()]
        if wrong:
            raise StageError(f"{index} names files that are not there: {', '.join(wrong)}")
        return paths
    if not (folder / WEIGHTS).is_file():
        raise StageError(f"{folder} holds no {WEIGHTS}; only safetensors are loaded")
    return [folder / WEIGHTS]


def load_transformer(transformer: nn.Module, folder: Path) -> str:
    """Copy weights into a transformer, strictly, and return the sha256 over the files read.

    Raises: StageError listing every missing, unexpected and misshapen key.
    """
    paths = weight_files(folder)
    parameters = dict(transformer.state_dict())
    missing, problems = set(parameters), []
    for path in paths:
        with _open(path) as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                if name not in parameters:
                    problems.append(f"unexpected {name}")
                    continue
                missing.discard(name)
                shape, wanted = file.get_slice(name).get_shape(), list(parameters[name].shape)
                if shape != wanted:
                    problems.append(f"{name} is {shape}, not {wanted}")
                else:
                    parameters[name].copy_(file.get_tensor(name))
    problems += [f"missing {name}" for name in sorted(missing)]
    if problems:
        shown = "; ".join(problems[:20]) + (
            f"; and {len(problems) - 20} more" * (len(problems) > 20)
        )
        raise StageError(f"{folder} does not fit the model: {shown}")
    return weights_hash(folder)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:  # also when the file is cut short
        raise StageError(f"{path} cannot be read ({error})") from error


def weights_hash(folder: Path) -> str:
    """Return the sha256 of the weights: of the file, or over the hashes of several."""
    hashes = [files.sha256_of(path) for path in weight_files(folder)]
    return hashes[0] if len(hashes) == 1 else files.sha256_of_json(hashes)
