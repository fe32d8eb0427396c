"""What a path given as `checkpoint=` or `resume.path=` is: a run, a step, or a diffusers folder."""

from dataclasses import dataclass
from pathlib import Path

from cosmos_hydra import runs
from cosmos_hydra.engines.torch import checkpoint
from cosmos_hydra.engines.torch.checkpoint import Checkpoint
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.files import sha256_of_json
from cosmos_hydra.weights import diffusers
from cosmos_hydra.weights.torch_metadata import is_distributed, read_metadata


@dataclass(frozen=True)
class Located:
    """Weights on disk. `checkpoint` is None for a foreign folder."""

    transformer: Path
    checkpoint: Checkpoint | None

    @property
    def digest(self) -> str:
        """Return a hash of the weights' files."""
        if self.checkpoint is None:
            return diffusers.weights_hash(self.transformer)
        hashes = self.checkpoint.manifest["files"].items()
        state = f"{checkpoint.STATE}/"
        found = {name: h for name, h in hashes if name.startswith(state)}
        if self.checkpoint.peft is not None:  # the files are of the adapters alone
            base = self.checkpoint.manifest.get("base") or {}
            found["base"] = str(base.get("sha256", base.get("seed")))
        return sha256_of_json(found)

    @property
    def tokenizer(self) -> Path:
        """Return where a fitted tokenizer lies, if there is one."""
        found = self.checkpoint
        return found.tokenizer if found else self.transformer / checkpoint.TOKENIZER

    def __str__(self) -> str:
        if self.checkpoint is None:
            return f"diffusers folder {self.transformer}"
        return f"step {self.checkpoint.step} of {self.checkpoint.folder.parent.parent}"


def locate(path: str, key: str) -> Located:
    """Return the weights a path stands for; of a run the newest intact checkpoint.

    Raises: ConfigError when the path is none of the three; StageError when it is damaged.
    """
    folder = Path(path).expanduser()
    run = runs.run_of(folder)
    if run is not None:
        found = checkpoint.newest(run) if run == folder else checkpoint.open_checkpoint(folder)
        assert found is not None
        return Located(found.transformer, found)
    for candidate in (folder, folder / "transformer"):
        if diffusers.is_transformer(candidate):
            return Located(candidate, None)
    for candidate in (folder, folder / "weights"):
        if is_distributed(candidate):
            count = len(read_metadata(candidate).tensors)
            raise ConfigError(
                f"{key}={path} is a torch distributed checkpoint with {count} tensors; "
                f"export it to diffusers safetensors first, then name that folder"
            )
    if (folder / "checkpoints").is_dir() or folder.name.startswith("step_"):
        raise ConfigError(f"{key}={path} holds no complete checkpoint; train it further first")
    what = "is neither a run, a step of a run, nor a diffusers folder"
    raise ConfigError(f"{key}={path} {what if folder.exists() else 'does not exist'}")
