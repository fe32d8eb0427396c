"""metrics.jsonl, the run's own record: one JSON object a line, appended and flushed.

Training rows have `loss`, validation rows `val_loss`; both have `step`.
"""

import json
from pathlib import Path
from typing import Any

from cosmos_hydra import files


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows; a last line cut off by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


class Metrics:
    """Append rows to metrics.jsonl."""

    def __init__(self, path: Path, step: int) -> None:
        """Open for a run that stands at `step`: later rows of an earlier try are cut."""
        self.path = path
        kept = [row for row in read(path) if row["step"] <= step]
        files.write_bytes(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self.has_validation = any(row["step"] == step and "val_loss" in row for row in kept)
        self.file = path.open("a")

    def write(self, row: dict[str, Any]) -> None:
        """Append one row."""
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()
