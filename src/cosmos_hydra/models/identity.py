"""Folders of weights: whether they hold what they should, and what tells two of them apart."""

from pathlib import Path
from typing import Any

from cosmos_hydra import files
from cosmos_hydra.errors import ConfigError

TOKENIZER = "AutoencoderKLCosmos in diffusers layout"
TEXT_ENCODER = "a T5 encoder in transformers layout"


def weights_folder(key: str, path: str, content: str) -> Path:
    """Return the folder that a config key names.

    Raises: ConfigError when it lacks config.json or weights.
    """
    folder = Path(path).expanduser()
    for name in ("config.json", "*.safetensors"):
        if not any(folder.glob(name)):
            raise ConfigError(f"{key}={path} holds no {name}; it should be a folder of {content}")
    return folder


def folder_identity(path: Path) -> dict[str, Any]:
    """Return a hash of config.json and of the names and sizes of the weight files.

    The weights themselves, gigabytes, are not read.
    """
    weights = {file.name: file.stat().st_size for file in sorted(path.glob("*.safetensors"))}
    return {"sha256": files.sha256_of_json([(path / "config.json").read_text(), weights])}
