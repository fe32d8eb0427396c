"""What a run directory holds, read for its report; whatever is missing is empty or None.

Older runs lack run.json, losses.jsonl and some timings; a run that was only preprocessed has none.
"""

import fcntl
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_hydra import runs
from cosmos_hydra.changes import flat
from cosmos_hydra.data.clips import HELD_OUT, TRAIN
from cosmos_hydra.data.store import SampleStore, open_store
from cosmos_hydra.errors import StageError
from cosmos_hydra.tracking import metrics
from cosmos_hydra.tracking.losses import read_losses

Row = dict[str, Any]


@dataclass(frozen=True)
class GeneratedVideo:
    """A video below videos/: its sidecar, and the training clip it is most like, if known."""

    path: Path
    facts: dict[str, Any]
    nearest: dict[str, Any] | None


class RunRecord:
    """A run on disk. `config` stands in where the run does not know its own yet."""

    def __init__(self, run: Path, config: dict[str, Any]) -> None:
        self.run = run
        self.described = read_json(run / "run.json") or {}
        steps = runs.steps(run)
        self.saved_step = steps[-1] if steps else 0
        newest = read_json(runs.step_folder(run, steps[-1]) / runs.MANIFEST) if steps else None
        self.manifest = newest or {}
        self.config = self.described.get("config") or self.manifest.get("config") or config
        rows = metrics.read(run / "metrics.jsonl")
        self.rows = rows
        self.training = [row for row in rows if "loss" in row]
        self.validation = [row for row in rows if row.get("val_loss") is not None]
        self.skipped = {row["step"] for row in self.training if row.get("skipped")}
        self.losses = read_losses(run / "losses.jsonl")

    @property
    def step(self) -> int:
        """Return the last step taken; 0 before training."""
        return max(self.saved_step, self.training[-1]["step"] if self.training else 0)

    @property
    def diverged_at(self) -> int | None:
        """Return the step of the newest validation if that gave no finite number."""
        newest = next((row for row in reversed(self.rows) if "val_loss" in row), None)
        return newest["step"] if newest and newest["val_loss"] is None else None

    @property
    def max_steps(self) -> int:
        return int(self.config["trainer"]["max_steps"])

    @property
    def changes(self) -> list[tuple[str, Any, Any]] | None:
        """Return key, default and value of what differs; None if the defaults are not known."""
        defaults = self.described.get("defaults")
        if defaults is None:
            return None
        ours, theirs = flat(self.config), flat(defaults)
        return [(k, theirs.get(k), value) for k, value in ours.items() if theirs.get(k) != value]

    @cached_property
    def store(self) -> SampleStore | None:
        """Return the samples of the run, if they are still where its config says."""
        try:
            found = open_store(self.config["data"]["path"])
        except StageError:
            return None
        trained_on = self.data.get("content_hash") or self.manifest.get("data")
        return found if trained_on in (None, found.content_hash) else None

    @property
    def data(self) -> dict[str, Any]:
        """Return what run.json says of the samples."""
        return self.described.get("data") or {}

    @cached_property
    def clips(self) -> dict[str, dict[str, Any]]:
        """Return video, start frame and caption of each sample, by its id."""
        entries = self.store.manifest["samples"] if self.store else []
        return {entry["id"]: entry for entry in entries}

    @property
    def counts(self) -> dict[str, Any] | None:
        """Return the numbers of videos by fate, as preprocessing counted them."""
        counts = self.data.get("counts")
        return counts or (self.store.manifest.get("counts") if self.store else None)

    @property
    def num_samples(self) -> tuple[int, int] | None:
        """Return the numbers of clips to train on and held out."""
        if "train" in self.data:
            return self.data["train"], self.data["held_out"]
        splits = self.store.splits if self.store else None
        return (len(splits[TRAIN]), len(splits[HELD_OUT])) if splits else None

    @property
    def captions(self) -> list[str]:
        """Return the captions, each once: those of the samples, or some the checkpoint knows."""
        found = self.store.captions.values() if self.store else self.manifest.get("captions", [])
        return list(dict.fromkeys(found))

    @property
    def is_running(self) -> bool:
        """Return whether a process trains this run now."""
        try:
            with (self.run / ".lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False  # no lock, or a file system without locks
        return False

    @property
    def previews(self) -> list[Path]:
        """Return the pictures of previews, the first step's first."""
        return sorted((self.run / "previews").glob("step_*.png"), key=lambda p: int(p.stem[5:]))

    @property
    def videos(self) -> list[GeneratedVideo]:
        """Return the generated videos by name; those cut off by a kill lack their sidecar."""
        found = []
        for path in sorted((self.run / "videos").glob("*.mp4")):
            facts = read_json(path.with_suffix(".json"))
            if facts and "prompt" in facts:
                nearest = read_json(path.with_name(f"{path.stem}.nearest.json"))
                found.append(GeneratedVideo(path, facts, nearest))
        return found


def column(rows: list[Row], name: str) -> np.ndarray:
    """Return a value of every row as float64, NaN where there is none."""
    values = (row.get(name) for row in rows)
    return np.array([np.nan if value is None else value for value in values], np.float64)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a file, or None when there is none or it is damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
