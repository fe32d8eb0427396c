"""Transformer weights in diffusers layout: config.json and safetensors, one file or sharded.

Written config.json says what the release's says: in_channels without the padding channel and
concat_padding_mask true, so that diffusers loads the folder as it is.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from cosmos_hydra import files
from cosmos_hydra.config import ModelConfig
from cosmos_hydra.errors import StageError
from cosmos_hydra.models.size import input_channels
from cosmos_hydra.reading import open_tensors, plain_name, read_json, shown
from cosmos_hydra.weights.source import Entry, Source, WholeTensor

CLASS_NAME = "CosmosTransformer3DModel"
WEIGHTS = "diffusion_pytorch_model.safetensors"
# of safetensors; what is not here is no floating type
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def config_of(model: ModelConfig) -> dict[str, Any]:
    """Return config.json of a model."""
    return {
        "_class_name": CLASS_NAME,
        "in_channels": input_channels(model) - 1,  # diffusers adds the padding mask itself
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
        return read_json(folder / "config.json").get("_class_name") == CLASS_NAME
    except (OSError, ValueError):
        return False


def write_config(model: ModelConfig, folder: Path) -> None:
    """Write config.json of a model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(model), indent=2) + "\n")


def save_transformer(transformer: nn.Module, model: ModelConfig, folder: Path) -> None:
    """Write a transformer in the dtype it has; the caller makes the folder crash-safe."""
    write_config(model, folder)
    state = {name: t.detach().cpu().contiguous() for name, t in transformer.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def weight_files(folder: Path, name: str = WEIGHTS) -> list[Path]:
    """Return the safetensors files of a folder, those of the index if there is one.

    Raises: StageError when there are none or the index names a file that is not in the folder.
    """
    index = folder / f"{name}.index.json"
    if index.is_file():
        try:
            names = {plain_name(file) for file in read_json(index)["weight_map"].values()}
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise StageError(f"{index} is no index of weights ({error})") from error
        missing = sorted(file for file in names if not (folder / file).is_file())
        if missing:
            raise StageError(f"{index} names files that are not there: {', '.join(missing)}")
        return [folder / file for file in sorted(names)]
    if not (folder / name).is_file():
        raise StageError(f"{folder} holds no {name}; only safetensors are loaded")
    return [folder / name]


class Folder(Source):
    """A folder in diffusers' layout."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.files: dict[str, Any] = {}
        self.open = ExitStack()
        for path in weight_files(folder):
            try:
                file = self.open.enter_context(open_tensors(path))
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    if name in self.files:
                        self.problems.append(f"in two files {shown(name)}")
                    tensor, self.files[name] = file.get_slice(name), file
                    kind = tensor.get_dtype()
                    if kind not in DTYPES:
                        self.problems.append(f"{shown(name)} is {kind}, not a floating type")
                    shape = tuple(tensor.get_shape())
                    self.entries[name] = Entry(shape, DTYPES.get(kind, torch.float32), name)
            except (OSError, ValueError) as error:  # also when the file is cut short
                raise StageError(f"{path} cannot be read ({shown(error)})") from error

    def get(self, name: str) -> WholeTensor:
        return self.files[name].get_slice(name)


def weights_hash(folder: Path) -> str:
    """Return the sha256 of the weights: of the file, or over the hashes of several."""
    hashes = [files.sha256_of(path) for path in weight_files(folder)]
    return hashes[0] if len(hashes) == 1 else files.sha256_of_json(hashes)
