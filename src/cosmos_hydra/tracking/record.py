"""What a run reports while it trains: metrics.jsonl, losses.jsonl and, if asked for, wandb."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cosmos_hydra.config import Config
from cosmos_hydra.tracking.metrics import JsonLines
from cosmos_hydra.tracking.wandb import Wandb


class Record:
    """The open files of one run, which stands at `step`."""

    def __init__(self, config: Config, run: Path, step: int) -> None:
        self.every = config.log.every
        self.metrics = JsonLines(run / "metrics.jsonl", step)
        self.losses = JsonLines(run / "losses.jsonl", step)
        self.wandb = Wandb(config, run)
        rows = self.metrics.kept
        self.has_validation = any(row["step"] == step and "val_loss" in row for row in rows)
        self.skipped_steps = _skipped_at_the_end(rows)

    def step(self, row: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        """Note a training step, and the loss of each of its samples."""
        self.metrics.write(row)
        self.losses.write(*samples)
        self.skipped_steps = self.skipped_steps + 1 if row.get("skipped") else 0
        if row["step"] % self.every == 0:
            self.wandb.log(row)

    def validation(self, row: dict[str, Any]) -> None:
        """Note a validation."""
        self.metrics.write(row)
        self.wandb.log(row)

    @contextmanager
    def timed(self, name: str, step: int) -> Iterator[None]:
        """Note how long the block took, unless it fails."""
        began_s = time.perf_counter()
        yield
        self.metrics.write({"step": step, name: time.perf_counter() - began_s})

    def close(self) -> None:
        """Close the files and finish the wandb run."""
        self.metrics.close()
        self.losses.close()
        self.wandb.close()


def _skipped_at_the_end(rows: list[dict[str, Any]]) -> int:
    count = 0
    for row in reversed([row for row in rows if "loss" in row]):
        if not row.get("skipped"):
            break
        count += 1
    return count
