"""Checkpoints of a run: weights in diffusers layout, optimizer state, and a manifest last.

A checkpoint folder appears under its name only when it is whole. Loading checks every file's
sha256, runs no code, and falls back to the next older checkpoint when one is damaged.
"""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from cosmos_hydra import files, runs
from cosmos_hydra.config import ModelConfig
from cosmos_hydra.errors import StageError
from cosmos_hydra.weights import diffusers

FORMAT_VERSION = 1
BYTES_PER_PARAMETER = 12  # float32: weight, first and second moment
TRANSFORMER = "transformer"
OPTIMIZER = "optimizer.safetensors"
TOKENIZER = "tokenizer.safetensors"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    @property
    def transformer(self) -> Path:
        return self.folder / TRANSFORMER

    @property
    def tokenizer(self) -> Path:
        """Return where a fitted tokenizer lies, if the run has one."""
        return self.folder / TOKENIZER


def save(
    run: Path,
    step: int,
    transformer: nn.Module,
    optimizer: torch.optim.Optimizer,
    model: ModelConfig,
    facts: dict[str, Any],
    fitted_tokenizer: Path | None,
) -> Checkpoint:
    """Write checkpoints/step_N; `facts` go into its manifest. Blocks until it is on disk.

    Raises: StageError when the disk does not take it; older checkpoints stay as they are.
    """
    folder = runs.step_folder(run, step)
    try:
        with files.new_folder(folder) as temporary:
            diffusers.save_transformer(transformer, model, temporary / TRANSFORMER)
            save_file(_optimizer_tensors(transformer, optimizer), temporary / OPTIMIZER)
            if fitted_tokenizer is not None:
                shutil.copyfile(fitted_tokenizer, temporary / TOKENIZER)
            hashes = {
                path.relative_to(temporary).as_posix(): files.sha256_of(path)
                for path in sorted(temporary.rglob("*"))
                if path.is_file()
            }
            manifest = {"format_version": FORMAT_VERSION, "step": step, **facts, "files": hashes}
            files.write_json(temporary / runs.MANIFEST, manifest)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StageError(f"checkpoint {folder} cannot be written ({reason})") from error
    return Checkpoint(folder, manifest)


def check_space(run: Path, num_parameters: int) -> None:
    """Raise StageError when the disk has no room for the checkpoints the run needs at once."""
    size_gb = BYTES_PER_PARAMETER * num_parameters / 1e9
    # a new one is written before an old one goes
    needed_gb = size_gb * (1 if runs.steps(run) else 2)
    free_gb = shutil.disk_usage(run).free / 1e9
    if free_gb < needed_gb:
        raise StageError(
            f"{run} has {free_gb:.2g} GB of free disk but checkpoints of {size_gb:.2g} GB need "
            f"{needed_gb:.2g}; free some space or set paths.runs"
        )


def prune(run: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; 0 keeps all."""
    for step in runs.steps(run)[: -keep or None] if keep else []:
        folder = runs.step_folder(run, step)
        # without its manifest it no longer counts, whatever happens while the rest goes
        (folder / runs.MANIFEST).unlink()
        shutil.rmtree(folder)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Return a checkpoint after checking its files.

    Raises: StageError naming what is wrong.
    """
    try:
        manifest = json.loads((folder / runs.MANIFEST).read_text())
        version, hashes = manifest["format_version"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageError(f"checkpoint {folder} has no readable manifest.json ({error})") from error
    if version != FORMAT_VERSION:
        raise StageError(
            f"checkpoint {folder} has format_version {version}; this program reads {FORMAT_VERSION}"
        )
    for name, digest in hashes.items():
        path = folder / name
        if not path.is_file():
            raise StageError(f"checkpoint {folder} lacks {name}")
        if files.sha256_of(path) != digest:
            raise StageError(f"checkpoint {folder} is damaged: {name} has changed")
    return Checkpoint(folder, manifest)


def newest(run: Path) -> Checkpoint | None:
    """Return the newest intact checkpoint of a run, or None when it has no checkpoint at all.

    Raises: StageError when there are checkpoints and every one is damaged.
    """
    found = runs.steps(run)
    for step in reversed(found):
        try:
            return open_checkpoint(runs.step_folder(run, step))
        except StageError as error:
            logger.warning(f"{error}; trying the one before")
    if found:
        raise StageError(f"run {run} has no intact checkpoint; use resume.mode=fresh")
    return None


def restore(
    checkpoint: Checkpoint, transformer: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Load weights and optimizer state, bitwise as they were saved."""
    diffusers.load_transformer(transformer, checkpoint.transformer)
    tensors = load_file(checkpoint.folder / OPTIMIZER)
    for name, parameter in transformer.named_parameters():
        state = {
            kind: tensors[f"{kind}.{name}"]
            for kind in ("exp_avg", "exp_avg_sq", "step")
            if f"{kind}.{name}" in tensors
        }
        if state:
            optimizer.state[parameter] = {
                kind: tensor.to(parameter.device) for kind, tensor in state.items()
            }


def _optimizer_tensors(
    transformer: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, parameter in transformer.named_parameters():
        for kind, tensor in optimizer.state.get(parameter, {}).items():
            tensors[f"{kind}.{name}"] = tensor.detach().cpu().contiguous()
    return tensors
