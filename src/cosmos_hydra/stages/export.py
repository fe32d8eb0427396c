"""export: the weights of a run as a diffusers folder, adapters merged."""

import logging
import shutil
from pathlib import Path

import torch

from cosmos_hydra import files
from cosmos_hydra.config import Config
from cosmos_hydra.engines.torch import state
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.job import Job, command_line
from cosmos_hydra.models.lora import named_weights
from cosmos_hydra.models.transformer import build_transformer
from cosmos_hydra.sampling.requests import adopt
from cosmos_hydra.weights import diffusers
from cosmos_hydra.weights.card import model_card
from cosmos_hydra.weights.export import write_weights
from cosmos_hydra.weights.locate import locate
from cosmos_hydra.weights.tensors import reader_of

logger = logging.getLogger(__name__)


def run(config: Config, job: Job) -> Path:
    """Write the folder and return its path.

    Raises: ConfigError when it holds something already or there is nothing to export.
    """
    assert config.checkpoint is not None
    assert config.export.path is not None
    out, export = Path(config.export.path).expanduser(), config.export
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"export.path={out} is not empty; remove it, or choose another folder")
    weights = locate(config.checkpoint, "checkpoint")
    found = weights.checkpoint
    if found is None:
        raise ConfigError(
            f"checkpoint={config.checkpoint} is a diffusers folder already; name a run or a step"
        )
    trained = adopt(config, job.typed, weights)
    with torch.device("meta"):
        transformer = build_transformer(trained.model)
    parameters = dict(named_weights(transformer))
    if found.peft is None:
        state.check_fits({f"{state.WEIGHT}.{n}": p for n, p in parameters.items()}, found.state)
    read = reader_of(weights, trained.model.weights.path)
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    logger.info(f"exporting {weights} in {export.dtype.name} into {out}")
    with files.naming(out), files.new_folder(out) as folder:
        written = write_weights(folder, shapes, read, export.dtype, export.shard_gb)
        diffusers.write_config(trained.model, folder)
        if found.tokenizer.is_file():
            shutil.copyfile(found.tokenizer, folder / found.tokenizer.name)
        card = model_card(found, weights.digest, export.dtype, written.size_bytes)
        (folder / "README.md").write_text(card)
    count = len(written.files)
    merged = ", adapters merged" if found.peft else ""
    logger.info(
        f"exported: {out}, {written.size_bytes / 1e9:.3g} GB of {export.dtype.name} in {count} "
        f"file{'s' * (count != 1)}{merged}"
    )
    logger.info(f"next: {_next(trained, out)}")
    return out


def _next(config: Config, out: Path) -> str:
    """Return the command that makes a video with the folder, which names neither model nor clip."""
    data, model = config.data, config.model
    clip = {"frames": data.frames, "height": data.height, "width": data.width, "fps": data.fps}
    paths = {name: getattr(model, name).path for name in ("tokenizer", "text_encoder")}
    return command_line(
        *("stage=generate", f"checkpoint={out}", f"model={model.name}"),
        *(f"data.{key}={value}" for key, value in clip.items()),
        *(f"model.{name}.path={path}" for name, path in paths.items() if path),
        "generate.prompt=What to show",
    )
