"""What a run reports while it trains: metrics.jsonl, losses.jsonl and, if asked for, wandb."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cosmos_hydra.config import Config
from cosmos_hydra.tracking.metrics import JsonLines, read
from cosmos_hydra.tracking.wandb import Wandb

METRICS, LOSSES = FILES = ("metrics.jsonl", "losses.jsonl")
Row = dict[str, Any]


class Record:
    """The open files of one run, which stands at `step`; rank 0 writes, the others only count."""

    def __init__(self, config: Config, run: Path, step: int, is_writing: bool) -> None:
        rows = [row for row in read(run / METRICS) if row["step"] <= step]
        self.has_validation = any(row["step"] == step and "val_loss" in row for row in rows)
        self.skipped_steps = _skipped_at_the_end(rows)
        self.every = config.log.every
        self.files = [JsonLines(run / name, step) for name in FILES] if is_writing else []
        self.wandb = Wandb(config, run) if is_writing else None

    def step(self, row: Row, samples: list[Row]) -> None:
        """Note a training step, and the loss of each of its samples."""
        self._write(METRICS, row)
        self._write(LOSSES, *samples)
        self.skipped_steps = self.skipped_steps + 1 if row.get("skipped") else 0
        if self.wandb and row["step"] % self.every == 0:
            self.wandb.log(row)

    def validation(self, row: Row) -> None:
        """Note a validation."""
        self._write(METRICS, row)
        if self.wandb:
            self.wandb.log(row)

    def preview(self, picture: Path, step: int) -> None:
        """Note a preview's picture."""
        if self.wandb:
            self.wandb.log_picture("preview", picture, step)

    @contextmanager
    def timed(self, name: str, step: int) -> Iterator[None]:
        """Note how long the block took, unless it fails."""
        began_s = time.perf_counter()
        yield
        self._write(METRICS, {"step": step, name: time.perf_counter() - began_s})

    def close(self) -> None:
        """Close the files and finish the wandb run."""
        for file in self.files:
            file.close()
        if self.wandb:
            self.wandb.close()

    def _write(self, name: str, *rows: Row) -> None:
        for file in self.files:
            if file.path.name == name:
                file.write(*rows)


def _skipped_at_the_end(rows: list[dict[str, Any]]) -> int:
    count = 0
    for row in reversed([row for row in rows if "loss" in row]):
        if not row.get("skipped"):
            break
        count += 1
    return count
