"""metrics.jsonl: rows survive a kill, and a resumed run cuts what it will write again."""

import json
from pathlib import Path

from cosmos_hydra.tracking.metrics import JsonLines, read

ROWS = [
    {"step": 0, "val_loss": 1.0},
    {"step": 1, "loss": 0.9},
    {"step": 2, "loss": 0.8},
    {"step": 2, "val_loss": 0.7},
    {"step": 3, "loss": 0.6},
]


def written(path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_a_row_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    metrics = JsonLines(tmp_path / "metrics.jsonl", 0)
    for count, row in enumerate(ROWS, start=1):
        metrics.write(row)
        assert read(tmp_path / "metrics.jsonl") == ROWS[:count]
    metrics.close()


def test_reading_leaves_out_a_line_cut_off_by_a_kill(tmp_path: Path) -> None:
    path = written(tmp_path / "metrics.jsonl")
    with path.open("a") as file:
        file.write('{"step": 4, "los')
    assert read(path) == ROWS


def test_reading_a_file_that_is_not_there_gives_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path / "metrics.jsonl") == []


def test_opening_at_a_step_cuts_the_rows_after_it(tmp_path: Path) -> None:
    path = written(tmp_path / "metrics.jsonl")
    metrics = JsonLines(path, 2)
    assert read(path) == ROWS[:4]
    metrics.write({"step": 3, "loss": 0.5})
    metrics.close()
    assert read(path) == [*ROWS[:4], {"step": 3, "loss": 0.5}]
