"""Checkpoints of a run on disk: weights and optimizer state (see state.py), and a manifest last.

A checkpoint folder appears under its name only when it is whole. Loading checks every file's
sha256, runs no code, and falls back to the next older checkpoint when one is damaged.
"""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from cosmos_hydra import config as schema
from cosmos_hydra import files, runs
from cosmos_hydra.config import PeftConfig, PeftKind, StatePrecision
from cosmos_hydra.errors import StageError
from cosmos_hydra.reading import (
    SEAL,
    contained,
    open_tensors,
    read_json,
    read_sealed,
    shown,
)

FORMAT_VERSION = 2
TRANSFORMER = "transformer"
STATE = "state"
TOKENIZER = "tokenizer.safetensors"
ADAPTER = "adapter"
REQUIRED = (f"{STATE}/.metadata", f"{TRANSFORMER}/config.json")
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
    "base": (dict, NoneType),
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
    def state(self) -> Path:
        return self.folder / STATE

    @property
    def tokenizer(self) -> Path:
        """Return where a fitted tokenizer lies, if the run has one."""
        return self.folder / TOKENIZER

    @property
    def peft(self) -> PeftConfig | None:
        """Return what its adapters are like, if it holds adapters in place of all weights."""
        peft = schema.from_dict(self.manifest["config"]).peft
        return None if peft.kind is PeftKind.none else peft


def bytes_per_parameter(state: StatePrecision) -> int:
    """Return what a checkpoint takes for weight and moments; 8-bit ones are stored in float32."""
    return 4 + 2 * (2 if state is StatePrecision.bf16 else 4)


def check_space(run: Path, size_bytes: float) -> None:
    """Raise StageError when the disk has no room for the checkpoints the run needs at once."""
    size_gb = size_bytes / 1e9
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
        path = contained(folder, runs.MANIFEST)
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
    # a file that the manifest does not know could be read all the same
    found = (f"{STATE}/{path.name}" for path in (folder / STATE).glob("*"))
    unknown = sorted({*REQUIRED, *found} - manifest["files"].keys())
    if unknown:
        raise StageError(f"checkpoint {folder} is damaged: its manifest lacks {shown(unknown[0])}")
    return Checkpoint(folder, manifest)


def _check_facts(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise ValueError unless a manifest has what is used later, each of its type."""
    wrong = [name for name, kind in FACTS.items() if not isinstance(manifest.get(name), kind)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} missing or of another type")
    try:
        schema.from_dict(manifest["config"])
    except ValueError as error:
        raise ValueError(f"its config does not fit: {shown(error)}") from error
    number = folder.name.removeprefix("step_")
    if number.isdecimal() and int(number) != manifest["step"]:
        raise ValueError(f"it is of step {manifest['step']}")


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
    complete = {runs.step_folder(run, step) for step in found}
    for folder in sorted({*(run / "checkpoints").glob("step_*")} - complete):
        logger.info(f"{folder} is no complete checkpoint and is not used")
    for step in reversed(found):
        try:
            return open_checkpoint(runs.step_folder(run, step))
        except StageError as error:
            logger.warning(f"{error}; trying the one before")
    if found:
        raise StageError(f"run {run} has no intact checkpoint; use resume.mode=fresh")
    return None
