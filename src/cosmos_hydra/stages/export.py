"""export: weights of a run, adapters merged, or of any format, as another format."""

import logging
import shutil
from pathlib import Path

import torch

from cosmos_hydra import files
from cosmos_hydra.config import Config, ExportConfig, ExportDtype, ExportFormat
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.job import Job, command_line
from cosmos_hydra.models.lora import named_weights
from cosmos_hydra.models.transformer import build_transformer
from cosmos_hydra.sampling.requests import adopt
from cosmos_hydra.weights import diffusers
from cosmos_hydra.weights.card import Exported, model_card
from cosmos_hydra.weights.compare import Compared, comparison
from cosmos_hydra.weights.diffusers_export import write_diffusers
from cosmos_hydra.weights.locate import Located, locate
from cosmos_hydra.weights.nemo_export import write_nemo
from cosmos_hydra.weights.open import open_weights
from cosmos_hydra.weights.original import write_original
from cosmos_hydra.weights.source import Shapes, Source

# what the card calls a format
WHAT = {
    ExportFormat.diffusers: "diffusers CosmosTransformer3DModel",
    ExportFormat.original: "model.pt of NVIDIA's original code",
    ExportFormat.nemo: "NeMo checkpoint (Megatron's zarr format)",
}
logger = logging.getLogger(__name__)


def run(config: Config, job: Job) -> Path:
    """Write the folder and return its path.

    Raises: ConfigError when it holds something already or the weights are of another model;
    StageError when they cannot be read or do not fit.
    """
    assert config.checkpoint is not None
    assert config.export.path is not None
    out, export = Path(config.export.path).expanduser(), config.export
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"export.path={out} is not empty; remove it, or choose another folder")
    weights = locate(config.checkpoint, "checkpoint")
    adopted = adopt(config, job.typed, weights)
    model = adopted.model
    if export.format is ExportFormat.nemo and model.num_heads % export.tp:
        raise ConfigError(f"export.tp={export.tp} does not divide {model.num_heads} heads")
    with torch.device("meta"):
        transformer = build_transformer(model)
    shapes = {name: parameter.shape for name, parameter in named_weights(transformer)}
    source = open_weights(weights, shapes, model.weights.path)
    dtypes = _dtypes(export.dtype, weights, source)
    names = ", ".join(sorted({str(kind).removeprefix("torch.") for kind in dtypes.values()}))
    logger.info(f"exporting {weights} as {export.format} in {names} into {out}")
    found = comparison(weights, shapes, model.weights.path)
    with files.naming(out), files.new_folder(out) as folder:
        count = len(_write(folder, Compared(source, dtypes, found), shapes, dtypes, export))
        if export.format is ExportFormat.diffusers:
            diffusers.write_config(model, folder)
        if weights.tokenizer.is_file():
            shutil.copyfile(weights.tokenizer, folder / weights.tokenizer.name)
        size_bytes = sum(dtypes[name].itemsize * shape.numel() for name, shape in shapes.items())
        difference = found.outcome if found else None
        library = "diffusers" if export.format is ExportFormat.diffusers else ""
        exported = Exported(WHAT[export.format], names, size_bytes, difference, library)
        (folder / "README.md").write_text(model_card(weights, model, exported))
    if found is not None:
        found.report()
    merged = ", adapters merged" if weights.checkpoint and weights.checkpoint.peft else ""
    logger.info(
        f"exported: {out}, {size_bytes / 1e9:.3g} GB of {names} in {count} "
        f"file{'s' * (count != 1)}{merged}; read from sha256 {weights.digest}"
    )
    logger.info(f"next: {_next(adopted, out)}")
    return out


def _dtypes(asked: ExportDtype, weights: Located, source: Source) -> dict[str, torch.dtype]:
    """Return the dtype of each written weight."""
    if asked is ExportDtype.auto and weights.checkpoint is None:
        return {name: entry.dtype for name, entry in source.entries.items()}
    kind = torch.float32 if asked is ExportDtype.fp32 else torch.bfloat16
    return dict.fromkeys(source.entries, kind)


def _write(
    folder: Path,
    source: Source,
    shapes: Shapes,
    dtypes: dict[str, torch.dtype],
    export: ExportConfig,
) -> list[str]:
    match export.format:
        case ExportFormat.diffusers:
            return write_diffusers(folder, source, shapes, dtypes, export.shard_gb)
        case ExportFormat.original:
            return write_original(folder, source, shapes, dtypes)
        case ExportFormat.nemo:
            return write_nemo(folder, source, shapes, dtypes, export.tp)


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
