"""The text of a sweep's summary: columns that line up, numbers to the right."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LONGEST, WIDEST = 120, 40  # characters of a cause and of a value; sweep.csv has all of them
METRIC = "metric: val_loss, lower is better"


def heading(name: str, rows: Sequence[Any], wall_s: float | None) -> str:
    """Return the line of counts and times."""
    counts = [f"{len(rows)} job{'s' * (len(rows) != 1)}"]
    for status in ("ok", "failed", "preempted", "lost"):
        number = sum(row.job.status == status for row in rows)
        counts += [f"{number} {status}"] if number else []
    counts += [f"{clock(wall_s)} wall"] if wall_s is not None else []
    gpu_s = sum(row.gpu_s for row in rows)
    counts += [f"{gpu_s / 3600:.1f} GPU-h"] if gpu_s else []
    has_loss = any(row.val_loss is not None for row in rows)
    return f"sweep {name}  {', '.join(counts)}" + (f"      {METRIC}" if has_loss else "")


def jobs(rows: Sequence[Any], keys: Sequence[str], shown: Callable[[Path], Path]) -> list[str]:
    """Return a line a job under a line of names; a column without any value is left out."""
    columns: list[tuple[str, list[str]]] = [("#", [str(row.job.number) for row in rows])]
    columns += [(key, [short(row.overrides.get(key)) for row in rows]) for key in keys]
    columns += [
        ("val_loss", [_number(row.val_loss, ".4f") for row in rows]),
        ("step", [_number(row.step, "d") for row in rows]),
        ("time", [clock(row.job.seconds) for row in rows]),
        ("peak GB", [_number(row.peak_gb, ".1f") for row in rows]),
    ]
    columns = [column for column in columns if set(column[1]) != {"-"}]
    ends = [str(shown(row.job.directory)) if row.is_ok else _cause(row.job) for row in rows]
    if len(rows) > 1 and rows[0].val_loss is not None:
        ends[0] += "  <- best"
    return [f"{line}  {end}" for line, end in zip(_aligned(columns), ["run", *ends], strict=True)]


def means(rows: Sequence[Any], keys: Sequence[str]) -> list[str]:
    """Return the means over seeds, best first, of the jobs that came to their end."""
    losses: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for row in rows:
        if row.val_loss is not None:
            losses[tuple(short(row.overrides.get(key)) for key in keys)].append(row.val_loss)
    found = sorted(losses.items(), key=lambda item: statistics.fmean(item[1]))
    columns = [(key, [values[i] for values, _ in found]) for i, key in enumerate(keys)]
    columns += [
        ("mean val_loss", [f"{statistics.fmean(values):.4f}" for _, values in found]),
        ("std", [f"{statistics.stdev(v):.4f}" if len(v) > 1 else "-" for _, v in found]),
        ("seeds", [str(len(values)) for _, values in found]),
    ]
    return ["over seeds:", *_aligned(columns)] if found else []


def clock(seconds: float) -> str:
    """Return a time span as 0:07, 38:12 or 2:05:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short(value: str | None) -> str:
    """Return an override's value; a long number, as a search draws it, with four digits."""
    if value is None:
        return "-"
    try:
        return value if len(value) <= 8 else f"{float(value):.4g}"
    except ValueError:
        return _cut(value, WIDEST)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _cause(job: Any) -> str:
    return _cut(f"{job.status}: {job.error}", LONGEST)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _aligned(columns: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    cells = [(name, *values) for name, values in columns]
    widths = [max(map(len, column)) for column in cells]
    rows = zip(*cells, strict=True)
    return [
        "  " + "  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True))
        for row in rows
    ]
