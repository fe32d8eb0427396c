"""What a stage gets beside the config: where it writes and what the user typed."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from cosmos_hydra.overrides import typed_keys, unquoted


@dataclass(frozen=True)
class Job:
    """What a stage gets beside the config."""

    # where this run writes
    directory: Path
    # what the user typed, one override each
    overrides: tuple[str, ...] = ()

    @property
    def typed(self) -> set[str]:
        """Return the config keys and groups that the user typed."""
        return typed_keys(self.overrides)

    def command(self, **changes: str) -> str:
        """Return the command line of this job with some keys set otherwise."""
        typed = [unquoted(item) for item in self.overrides]
        kept = [item for item in typed if item.partition("=")[0] not in changes]
        return shlex.join(["cosmos-hydra", *(f"{k}={v}" for k, v in changes.items()), *kept])
