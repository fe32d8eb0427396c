"""Which clips a run finds hardest, from losses.jsonl (one row a sample and step).

Loss depends strongly on sigma, so each loss counts relative to what other samples get at about
the same sigma.
"""

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROWS_OF_A_MEDIAN = 20
MAX_MEDIANS = 100
MIN_VISITS = 2
MAX_CLIPS = 8
MAX_READ_BYTES = 50_000_000  # half a million rows, two seconds


@dataclass(frozen=True)
class WorstClip:
    """A sample whose loss is `ratio` times the usual, the median of its visits."""

    sample: str
    ratio: float
    visits: int


def read_losses(path: Path) -> list[dict[str, Any]]:
    """Return the rows of losses.jsonl; of a very long run the newest ones."""
    if not path.is_file():
        return []
    skipped_bytes = path.stat().st_size - MAX_READ_BYTES
    rows = []
    with path.open("rb") as file:
        if skipped_bytes > 0:
            file.seek(skipped_bytes)
            file.readline()
        for line in file:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue  # cut off by a kill
    return rows


def worst_clips(rows: list[dict[str, Any]]) -> list[WorstClip]:
    """Return the samples with the highest losses for their sigmas, the worst first.

    The later half of training counts, and samples that were visited twice in it. Rows are those
    of losses.jsonl; without enough of them the list is empty.
    """
    last_step = max((row["step"] for row in rows), default=0)
    late = [row for row in rows if row["step"] > last_step / 2 and (row["loss"] or 0) > 0]
    if not late:
        return []
    log_sigma = np.log([row["sigma"] for row in late])
    loss = np.array([row["loss"] for row in late])
    ratios: dict[str, list[float]] = {}
    for row, ratio in zip(late, loss / _usual(log_sigma, loss), strict=True):
        ratios.setdefault(row["sample"], []).append(float(ratio))
    clips = [
        WorstClip(sample, float(np.median(found)), len(found))
        for sample, found in ratios.items()
        if len(found) >= MIN_VISITS
    ]
    return sorted(clips, key=lambda clip: (-clip.ratio, clip.sample))[:MAX_CLIPS]


def _usual(log_sigma: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Return for each row the median loss of rows of similar sigma, between medians on a line."""
    order = np.argsort(log_sigma, kind="stable")
    count = min(max(1, len(order) // ROWS_OF_A_MEDIAN), MAX_MEDIANS)
    groups = np.array_split(order, count)
    centres = [np.median(log_sigma[group]) for group in groups]
    return np.interp(log_sigma, centres, [np.median(loss[group]) for group in groups])


def skipping_clips(rows: list[dict[str, Any]], skipped: Collection[int]) -> dict[str, int]:
    """Return how many of the skipped steps each sample can have caused, most first.

    Those are its steps without a finite loss; where all losses of a step are finite, the whole step
    is to blame.
    """
    steps: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if row["step"] in skipped:
            steps.setdefault(row["step"], []).append(row)
    counts: Counter[str] = Counter()
    for found in steps.values():
        blamed = [row for row in found if row["loss"] is None] or found
        counts.update({row["sample"] for row in blamed})
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
