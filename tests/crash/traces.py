"""What commands left on disk, as far as it may not depend on when they were stopped."""

import json
import re
from pathlib import Path

from small_runs import rows_of

from cosmos_hydra import runs
from cosmos_hydra.tracking import metrics

# with times in them; only that they are there counts
TIMED = ("run.log", "report.html")
STEP = re.compile(r"(.*)/checkpoints/step_(\d{6})/.*")


def traces(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder: of runs the last checkpoint, and rows without timings.

    Whatever was left over is in it too: temporary files and folders, locks.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        step = STEP.fullmatch(name)
        if not path.is_file() or (step and int(step[2]) != runs.steps(folder / step[1])[-1]):
            continue
        if path.name.endswith("hashes.json"):
            continue  # there once the videos are two seconds old
        if path.name in TIMED:
            found[name] = b""
        elif path.name == "metrics.jsonl":
            found[name] = json.dumps(rows_of(path.parent)).encode()
        else:
            found[name] = path.read_bytes()
    return found


def assert_same(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    """Compare names and bytes without printing the bytes."""
    assert sorted(one) == sorted(other)
    assert [name for name in one if one[name] != other[name]] == []


def assert_whole_rows(run: Path) -> None:
    """Check that both records of a run have every step once, in order."""
    steps = [row["step"] for row in rows_of(run) if "loss" in row]
    assert steps == list(range(1, len(steps) + 1))
    assert list(dict.fromkeys(r["step"] for r in metrics.read(run / "losses.jsonl"))) == steps
