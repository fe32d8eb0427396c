"""metrics.jsonl and losses.jsonl, the run's own record: a JSON object a line, written at once.

metrics.jsonl: training rows have `loss`, validation rows `val_loss`, others `preview_s` or
`checkpoint_s`; all have `step`. losses.jsonl: one row a sample and step. NaN is written as null.
"""

import json
import math
import statistics
from pathlib import Path
from typing import Any

from cosmos_hydra import files


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows; a line that is none, as one cut off by a kill, is left out."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """Return what a run came to as one line."""
    steps = [row for row in rows if "loss" in row]
    validation = [row for row in rows if row.get("val_loss") is not None]
    text = f"trained {len(steps)} step{'s' * (len(steps) != 1)}"
    if steps:
        step_s = statistics.median(row.get("step_s", 0.0) for row in steps)
        mem_gb = steps[-1].get("mem_gb", 0.0)
        text += f", {step_s:.3g} s each (median), peak memory {mem_gb:.3g} GB"
    skipped = sum(bool(row.get("skipped")) for row in steps)
    if skipped:
        text += f", {skipped} of them skipped"
    if validation:
        first, last = validation[0], validation[-1]
        text += (
            f"; validation loss {first['val_loss']:.4f} -> {last['val_loss']:.4f} "
            f"(gaussian {last['gaussian_loss']:.4f}, linear {last['linear_loss']:.4f})"
        )
    return text


class JsonLines:
    """Append rows to a file."""

    def __init__(self, path: Path, step: int) -> None:
        """Open for a run that stands at `step`: later rows of an earlier try are cut."""
        self.path = path
        self.kept = [row for row in read(path) if row["step"] <= step]
        content = "".join(json.dumps(row) + "\n" for row in self.kept)
        files.write_bytes(path, content.encode())
        self.file = path.open("a")

    def write(self, *rows: dict[str, Any]) -> None:
        """Append rows."""
        with files.naming(self.path):
            self.file.writelines(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows)
            self.file.flush()

    def close(self) -> None:
        """Close the file."""
        with files.naming(self.path):
            self.file.close()


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
