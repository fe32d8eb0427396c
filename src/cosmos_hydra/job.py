"""What a stage gets beside the config: where it writes and what the user typed."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cosmos_hydra import files
from cosmos_hydra.overrides import typed_keys, unquoted


@dataclass(frozen=True)
class Job:
    """What a stage gets beside the config."""

    # where this run writes
    directory: Path
    # what the user typed for us, one override each
    overrides: tuple[str, ...] = ()
    # and for the launcher
    launch: tuple[str, ...] = ()
    # the config as composed, and the option of each group; None outside Hydra
    composed: DictConfig | None = None
    choices: dict[str, str] = field(default_factory=dict)

    @property
    def typed(self) -> set[str]:
        """Return the config keys and groups that the user typed."""
        return typed_keys(self.overrides)

    def command(self, **changes: str) -> str:
        """Return the command line of this job with some keys set otherwise."""
        typed = [unquoted(item) for item in (*self.overrides, *self.launch)]
        kept = [item for item in typed if item.partition("=")[0] not in ("sweep", *changes)]
        return command_line(*(f"{k}={v}" for k, v in changes.items()), *kept)

    def begin(self) -> None:
        """Write .hydra/: the config as composed, what was typed, and the option of each group.

        Stages call it once nothing can be refused any more, so that a refused command leaves the
        record of the run before it.
        """
        if self.composed is None:
            return
        contents = {
            "config.yaml": self.composed,
            "overrides.yaml": OmegaConf.create(list(self.overrides)),
            "hydra.yaml": OmegaConf.create({"hydra": {"runtime": {"choices": self.choices}}}),
        }
        for name, content in contents.items():
            file = self.directory / ".hydra" / name
            files.write_bytes(file, OmegaConf.to_yaml(content).encode())


def command_line(*overrides: str) -> str:
    """Return what to type into a shell."""
    return shlex.join(["cosmos-hydra", *overrides])
