"""Which clips count as the hardest, whatever sigmas they were drawn with."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosmos_hydra.tracking import losses
from cosmos_hydra.tracking.losses import read_losses, skipping_clips, worst_clips


def usual_loss(sigma: float) -> float:
    """Return a loss that falls by a factor of hundreds from low to high noise."""
    return 1 / (1 + 20 * sigma**2)


def rows_of(steps: int, samples: int, factors: dict[str, float]) -> list[dict[str, Any]]:
    """Return rows of a run in which some samples have higher losses than is usual."""
    generator = np.random.default_rng(0)
    rows = []
    for step in range(1, steps + 1):
        for sample in map(str, generator.permutation(samples)[:4]):
            sigma = math.exp(generator.normal(0, 1))
            spread = math.exp(generator.normal(0, 0.1))
            loss = usual_loss(sigma) * spread * factors.get(sample, 1.0)
            rows.append({"step": step, "sample": sample, "sigma": sigma, "loss": loss})
    return rows


def test_clips_with_planted_losses_come_first_with_their_factor() -> None:
    rows = rows_of(400, 40, {"7": 3.0, "21": 1.8})
    first, second, third, *_ = found = worst_clips(rows)
    assert (first.sample, second.sample) == ("7", "21")
    assert first.ratio == pytest.approx(3.0, rel=0.2)
    assert second.ratio == pytest.approx(1.8, rel=0.2)
    assert third.ratio < 1.3
    assert len(found) == 8
    assert first.visits == sum(row["sample"] == "7" and row["step"] > 200 for row in rows)


def test_low_noise_alone_makes_no_clip_hard() -> None:
    rows = rows_of(400, 40, {})
    for row in rows:
        if row["sample"] == "7":
            row["sigma"] = 0.05
            row["loss"] = usual_loss(0.05)
    assert all(clip.ratio < 1.4 for clip in worst_clips(rows))


def test_only_the_later_half_and_clips_seen_twice_count() -> None:
    rows = rows_of(100, 20, {})
    early = [{**row, "loss": 100.0} for row in rows if row["step"] <= 50]
    late = [row for row in rows if row["step"] > 50]
    once = [{"step": 100, "sample": "once", "sigma": 1.0, "loss": 100.0}]
    assert worst_clips(early + late + once)[0].ratio < 1.5
    twice = [{**once[0], "step": step} for step in (99, 100)]
    assert worst_clips(early + late + twice)[0].sample == once[0]["sample"]


@pytest.mark.parametrize("loss", [None, 0.0, 1.0])
def test_too_little_gives_no_clips(loss: float | None) -> None:
    assert worst_clips([]) == []
    assert worst_clips([{"step": 1, "sample": "0", "sigma": 1.0, "loss": loss}]) == []


def test_skipped_steps_are_blamed_on_infinite_losses_or_else_on_the_whole_step() -> None:
    rows = [
        {"step": step, "sample": sample, "sigma": 1.0, "loss": loss}
        for step, sample, loss in (
            (1, "a", None),
            (1, "b", 1.0),
            (2, "b", 1.0),
            (2, "a", 1.0),
            (3, "c", 1.0),
        )
    ]
    assert skipping_clips(rows, {1, 2}) == {"a": 2, "b": 1}
    assert skipping_clips(rows, set()) == {}


def test_of_a_long_file_the_newest_whole_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "losses.jsonl"
    assert read_losses(path) == []
    rows = [{"step": step, "sample": "0", "sigma": 1.0, "loss": 1.0} for step in range(1000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 1000, "sam')
    assert read_losses(path) == rows
    monkeypatch.setattr(losses, "MAX_READ_BYTES", 10_000)
    newest = read_losses(path)
    assert newest == rows[-len(newest) :]
    assert 100 < len(newest) < 200
