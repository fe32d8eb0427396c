"""What a sweep came to: a table on the terminal, sweep.csv and sweep.html in its folder.

All of it is read from the files of the runs, so that a job may have run anywhere.
"""

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra_plugins.cosmos_launchers import _table
from hydra_plugins.cosmos_launchers._jobs import CONFIG_CODE, Job

FILE = "sweep.csv"


class Row:
    """A job and what its run directory says."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.is_ok = job.status == "ok"
        # a key may be given twice: the last one counts
        self.overrides = dict(item.lstrip("+").partition("=")[::2] for item in job.overrides)
        self.metrics = _rows(job.directory / "metrics.jsonl")

    @cached_property
    def described(self) -> dict[str, Any]:
        """Return run.json."""
        try:
            return dict(json.loads((self.job.directory / "run.json").read_text()))
        except (OSError, ValueError):
            return {}

    @property
    def val_loss(self) -> float | None:
        """Return the last validation loss of a job that came to its end."""
        found = [row["val_loss"] for row in self.metrics if row.get("val_loss") is not None]
        return found[-1] if found and self.is_ok else None

    @property
    def step(self) -> int | None:
        return max((row["step"] for row in self.metrics if "loss" in row), default=None)

    @property
    def peak_gb(self) -> float | None:
        """Return the peak memory in GB; of a GPU, or of the process."""
        return max((row["mem_gb"] for row in self.metrics if row.get("mem_gb")), default=None)

    @property
    def gpu_s(self) -> float:
        is_cuda = self.described.get("device", {}).get("type") == "cuda"
        return self.job.seconds * self.described.get("ranks", 1) if is_cuda else 0.0

    @property
    def wants_report(self) -> bool:
        log = self.described.get("config", {}).get("log", {})
        return bool(self.metrics) and log.get("report", True)


def summarise(folder: Path, jobs: Sequence[Job], wall_s: float | None = None) -> int:
    """Print the table, write sweep.csv and sweep.html, and return the exit code of the sweep.

    Call it once no job runs any more, with all of the sweep's.
    """
    rows = sorted((Row(job) for job in jobs), key=_rank)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / FILE, _csv(rows, folder))
    if any(row.wants_report for row in rows):
        _report(folder)
    sys.stdout.write("\n".join(_lines(rows, folder, wall_s)) + "\n")
    sys.stdout.flush()
    codes = {job.exit_code for job in jobs if job.status != "ok"}
    return 0 if not codes else CONFIG_CODE if codes == {CONFIG_CODE} else 1


def _lines(rows: list[Row], folder: Path, wall_s: float | None) -> list[str]:
    keys = _swept(rows)
    name = f"{folder.parent.name}/{folder.name}"
    lines = [_table.heading(name, rows, wall_s), *_table.jobs(rows, keys, _shown)]
    if "seed" in keys:
        lines += ["", *_table.means(rows, [key for key in keys if key != "seed"])]
    best = rows[0] if rows and rows[0].val_loss is not None else None
    if best:
        checkpoint = f"checkpoint={_shown(best.job.directory)}"
        lines.append(f"use it: {shlex.join(['cosmos-hydra', 'stage=generate', checkpoint])}")
    if any(row.job.status in ("preempted", "lost") for row in rows):
        lines.append(f"go on: the same command with hydra.sweep.dir={_shown(folder)}")
    return lines


def _rank(row: Row) -> tuple[bool, bool, float, int]:
    loss = row.val_loss
    return (not row.is_ok, loss is None, loss or 0.0, row.job.number)


def _swept(rows: list[Row]) -> list[str]:
    """Return the keys whose values differ between jobs, in the order they were given."""
    keys = dict.fromkeys(key for row in rows for key in row.overrides)
    return [key for key in keys if len({row.overrides.get(key) for row in rows}) > 1]


def _csv(rows: list[Row], folder: Path) -> str:
    """Return a line a job; the directory as seen from the sweep's, which may be moved."""
    keys = list(dict.fromkeys(key for row in rows for key in row.overrides))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ("number", "status", "val_loss", "step", "time_s", "peak_gb", "run", "error")
    writer.writerow([*head, *keys])
    for row in rows:
        job = row.job
        numbers = (row.val_loss, row.step, round(job.seconds, 3), row.peak_gb)
        where = os.path.relpath(job.directory, folder)
        cells = (job.number, job.status, *numbers, where, job.error)
        writer.writerow([*cells, *(row.overrides.get(key) for key in keys)])
    return text.getvalue()


def _report(folder: Path) -> None:
    """Have sweep.html made, which takes what this process has not loaded (torch, matplotlib)."""
    command = [sys.executable, "-m", "cosmos_hydra", "stage=report", f"checkpoint={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl; one cut off by a kill is left out."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _shown(path: Path) -> Path:
    """Return the path relative to the working directory where that is shorter to read."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
