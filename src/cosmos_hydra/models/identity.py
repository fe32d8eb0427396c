"""Folders of weights: whether they hold what they should, and what tells two of them apart."""

from pathlib import Path
from typing import Any, NamedTuple

from cosmos_hydra import files
from cosmos_hydra.errors import ConfigError, StageError
from cosmos_hydra.reading import open_tensors, read_json
from cosmos_hydra.weights import diffusers


class Content(NamedTuple):
    """What a folder should hold, in words, and the name of its weight file."""

    text: str
    weights: str


TOKENIZER = Content("AutoencoderKLCosmos in diffusers layout", diffusers.WEIGHTS)
TEXT_ENCODER = Content("a T5 encoder in transformers layout", "model.safetensors")
# what makes the libraries run code of the folder, or read weights elsewhere
REFUSED_KEYS = ("auto_map", "quantization_config")
REFUSED_FILE = "adapter_config.json"


def weights_folder(key: str, path: str, content: Content) -> Path:
    """Return the folder that a config key names, having looked at its files.

    Raises: ConfigError when it lacks config.json or weights, or wants more than these loaded;
    StageError when they are damaged.
    """
    folder = Path(path).expanduser()
    for name in ("config.json", "*.safetensors"):
        if not any(folder.glob(name)):
            raise ConfigError(
                f"{key}={path} holds no {name}; it should be a folder of {content.text}"
            )
    config = config_of(key, folder)
    asked = [f"{name} in config.json" for name in REFUSED_KEYS if name in config]
    if asked or (folder / REFUSED_FILE).exists():
        raise ConfigError(
            f"{key}={path} asks for {(asked or [REFUSED_FILE])[0]}, which is never followed: "
            f"it can run code or load other weights; remove it if the weights do without"
        )
    for file in diffusers.weight_files(folder, content.weights):
        try:
            with open_tensors(file):
                pass
        except (OSError, ValueError) as error:
            raise StageError(f"{key}={path}: {file.name} cannot be read ({error})") from error
    return folder


def config_of(key: str, folder: Path) -> dict[str, Any]:
    """Return config.json of a folder. Raises: StageError naming the config key."""
    try:
        return read_json(folder / "config.json")
    except (OSError, ValueError) as error:
        raise StageError(f"{key}={folder}: config.json cannot be read ({error})") from error


def folder_identity(path: Path) -> dict[str, Any]:
    """Return a hash of config.json and of the names and sizes of the weight files.

    The weights themselves, gigabytes, are not read.
    """
    weights = {file.name: file.stat().st_size for file in sorted(path.glob("*.safetensors"))}
    return {"sha256": files.sha256_of_json([(path / "config.json").read_text(), weights])}
