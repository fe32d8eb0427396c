"""Checkpoints of a run: weights in diffusers layout, optimizer state, and a manifest last.

A checkpoint folder appears under its name only when it is whole. Loading checks every file's
sha256, runs no code, and falls back to the next older checkpoint when one is damaged.
"""

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from cosmos_hydra import files, runs
from cosmos_hydra.config import ModelConfig
from cosmos_hydra.errors import STORAGE, StageError, storage_errno
from cosmos_hydra.reading import (
    SEAL,
    contained,
    open_tensors,
    read_json,
    read_sealed,
    sealed,
    shown,
)
from cosmos_hydra.weights import diffusers

FORMAT_VERSION = 1
BYTES_PER_PARAMETER = 12  # float32: weight, first and second moment
TRANSFORMER = "transformer"
OPTIMIZER = "optimizer.safetensors"
TOKENIZER = "tokenizer.safetensors"
REQUIRED = (OPTIMIZER, f"{TRANSFORMER}/config.json")
# of a manifest: what resuming and generating use
FACTS: dict[str, Any] = {
    SEAL: str,
    "step": int,
    "files": dict,
    "config": dict,
    "data": str,
    "captions": list,
    "fps": (int, float),
    "tokenizer": (dict, NoneType),
    "text_encoder": (dict, NoneType),
}
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
            files.write_bytes(temporary / runs.MANIFEST, sealed(manifest))
    except (OSError, SafetensorError) as error:
        number = storage_errno(error)
        reason, advice = (os.strerror(number), STORAGE[number]) if number else (error, "try again")
        raise StageError(
            f"checkpoint {folder} cannot be written ({reason}); "
            f"{advice}, the same command goes on from the one before"
        ) from error
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


def prune(run: Path, keep: int, step: int) -> None:
    """Remove all but `keep` checkpoints, the newest up to the one just saved; 0 keeps all.

    Later ones are damaged: the run had to begin before them.
    """
    found = runs.steps(run)
    kept = [number for number in found if number <= step][-keep:]
    for step in sorted(set(found) - set(kept)) if keep else []:
        folder = runs.step_folder(run, step)
        # under another name it no longer counts, whatever happens while it goes
        shutil.rmtree(folder.replace(folder.with_name(f"{folder.name}{files.TEMPORARY_SUFFIX}")))


def remove_leftovers(run: Path) -> None:
    """Remove what a kill left of a checkpoint that was being written or removed."""
    for folder in (run / "checkpoints").glob(f"step_*{files.TEMPORARY_SUFFIX}"):
        shutil.rmtree(folder)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Return a checkpoint after checking its files.

    Raises: StageError naming what is wrong.
    """
    try:
        path = folder / runs.MANIFEST
        version = read_json(path).get("format_version")
        if version != FORMAT_VERSION:
            raise StageError(
                f"checkpoint {folder} has format_version {shown(version)}; "
                f"this program reads {FORMAT_VERSION}"
            )
        manifest = read_sealed(path)
        _check_facts(folder, manifest)
    except (OSError, ValueError) as error:
        raise StageError(f"checkpoint {folder} has no readable manifest.json ({error})") from error
    for name, digest in manifest["files"].items():
        _check_file(folder, name, digest)
    return Checkpoint(folder, manifest)


def _check_facts(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise ValueError unless a manifest has what is used later, each of its type."""
    wrong = [name for name, kind in FACTS.items() if not isinstance(manifest.get(name), kind)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} missing or of another type")
    number = folder.name.removeprefix("step_")
    if number.isdecimal() and int(number) != manifest["step"]:
        raise ValueError(f"it is of step {manifest['step']}")
    # a weight file or an index that the manifest does not know would be read all the same
    found = {f"{TRANSFORMER}/{path.name}" for path in (folder / TRANSFORMER).glob("*.safetensors*")}
    unknown = {*REQUIRED, *found} - manifest["files"].keys()
    if unknown:
        raise ValueError(f"it does not list {shown(min(unknown))}")


def _check_file(folder: Path, name: str, digest: object) -> None:
    try:
        path = contained(folder, name)
        if not path.is_file():
            raise StageError(f"checkpoint {folder} lacks {shown(name)}")
        if files.sha256_of(path) != digest:
            raise StageError(f"checkpoint {folder} is damaged: {name} has changed")
        if path.suffix == ".safetensors":
            with open_tensors(path):
                pass
    except (OSError, ValueError) as error:
        raise StageError(
            f"checkpoint {folder} is damaged: {shown(name)} cannot be read ({error})"
        ) from error


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
    """Load weights and optimizer state, bitwise as they were saved.

    Raises: StageError when they are not those of this model.
    """
    diffusers.load_transformer(transformer, checkpoint.transformer)
    tensors = load_file(checkpoint.folder / OPTIMIZER)
    if not tensors:  # every step before was skipped
        return
    for name, parameter in transformer.named_parameters():
        shapes = {"exp_avg": parameter.shape, "exp_avg_sq": parameter.shape, "step": torch.Size()}
        state = {kind: tensors.get(f"{kind}.{name}", torch.empty(0)) for kind in shapes}
        wrong = [kind for kind, shape in shapes.items() if state[kind].shape != shape]
        if wrong:
            raise StageError(
                f"checkpoint {checkpoint.folder} is damaged: {OPTIMIZER} has no {wrong[0]} that "
                f"fits {name}; remove it to go on from the one before"
            )
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
