"""What a path given as `checkpoint=` or `resume.path=` is: a run, a step, or a foreign format."""

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path

from cosmos_hydra import files, runs
from cosmos_hydra.engines.torch import checkpoint
from cosmos_hydra.engines.torch.checkpoint import Checkpoint
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.weights import diffusers, torch_dist, zarr
from cosmos_hydra.weights.nemo import is_used
from cosmos_hydra.weights.original import FILE
from cosmos_hydra.weights.torch_metadata import is_distributed, read_metadata

CONFIG = "config.json"
FILES = (".pt", ".pth", ".ckpt")


class Format(Enum):
    """A format of weights, in words."""

    run = "run"
    diffusers = "diffusers folder"
    original = "original checkpoint"
    zarr = "NeMo checkpoint (zarr)"
    torch_dist = "NeMo checkpoint (torch_dist)"


@dataclass(frozen=True)
class Located:
    """Weights on disk: their folder, or the file. `checkpoint` is None for a foreign format."""

    path: Path
    format: Format
    checkpoint: Checkpoint | None = None

    @cached_property
    def digest(self) -> str:
        """Return a hash of the weights' files."""
        match self.format:
            case Format.diffusers:
                return diffusers.weights_hash(self.path)
            case Format.original:
                return files.sha256_of(self.path)
            case Format.zarr:
                return zarr.digest_of(self.path)
            case Format.torch_dist:
                return torch_dist.digest_of(self.path)
        found = self.checkpoint
        assert found is not None
        hashes = found.manifest["files"].items()
        state = {name: h for name, h in hashes if name.startswith(f"{checkpoint.STATE}/")}
        if found.peft is not None:  # the files are of the adapters alone
            base = found.manifest.get("base") or {}
            state["base"] = str(base.get("sha256", base.get("seed")))
        return files.sha256_of_json(state)

    @property
    def config(self) -> Path | None:
        """Return the config.json that gives the architecture, where the format has one."""
        if self.checkpoint is not None:
            return self.checkpoint.transformer / CONFIG
        return self.path / CONFIG if self.format is Format.diffusers else None

    @property
    def tokenizer(self) -> Path:
        """Return where a fitted tokenizer lies, if there is one."""
        if self.checkpoint is not None:
            return self.checkpoint.tokenizer
        folder = self.path.parent if self.format is Format.original else self.path
        return folder / checkpoint.TOKENIZER

    def __str__(self) -> str:
        if self.checkpoint is None:
            return f"{self.format.value} {self.path}"
        return f"step {self.checkpoint.step} of {self.path.parent.parent}"


def locate(path: str, key: str) -> Located:
    """Return the weights a path stands for; of a run the newest intact checkpoint.

    Raises: ConfigError when the path is nothing of the kind; StageError when it is damaged.
    """
    given = Path(path).expanduser()
    run = runs.run_of(given)
    if run is not None:
        found = checkpoint.newest(run) if run == given else checkpoint.open_checkpoint(given)
        assert found is not None
        return Located(found.folder, Format.run, found)
    foreign = _foreign(given)
    if foreign is not None:
        return foreign
    if (given / "checkpoints").is_dir() or given.name.startswith("step_"):
        raise ConfigError(f"{key}={path} holds no complete checkpoint; train it further first")
    what = "is neither a run, a step of a run, nor weights of diffusers, the original code or NeMo"
    for folder in (given, given / "weights"):
        if is_distributed(folder):
            count = len(read_metadata(folder).tensors)
            what = f"is a torch distributed checkpoint with {count} tensors, but none of NeMo's"
    raise ConfigError(f"{key}={path} {what if given.exists() else 'does not exist'}")


def _foreign(given: Path) -> Located | None:
    """Return weights of a foreign format; a release has several, of which diffusers' is first."""
    for folder in (given, given / "transformer"):
        if diffusers.is_transformer(folder):
            return Located(folder, Format.diffusers)
    for file in (given, given / FILE):
        if file.suffix in FILES and file.is_file():
            return Located(file, Format.original)
    for folder in (given, given / "weights", given / "nemo"):
        if zarr.is_zarr(folder):
            return Located(folder, Format.zarr)
        if is_distributed(folder) and any(map(is_used, read_metadata(folder).tensors)):
            return Located(folder, Format.torch_dist)
    return None
