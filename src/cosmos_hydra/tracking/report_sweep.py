"""sweep.html: the jobs of a sweep beside each other, from its sweep.csv and their metrics.jsonl.

Launchers write sweep.csv: a line a job, best first, its directory as seen from the sweep's, and
behind the column `error` one column for each override.
"""

import csv
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmos_hydra import files
from cosmos_hydra.errors import StageError
from cosmos_hydra.job import command_line
from cosmos_hydra.tracking import metrics
from cosmos_hydra.tracking import report_plots as plots
from cosmos_hydra.tracking.report_html import (
    Html,
    details,
    element,
    facts,
    join,
    page,
    plot,
    section,
    table,
)
from cosmos_hydra.tracking.report_run import Row, column

FILE = "sweep.csv"
COLUMNS = ("number", "status", "val_loss", "step", "time_s", "peak_gb", "run", "error")


@dataclass(frozen=True)
class SweepJob:
    """A line of sweep.csv, and the rows of its run."""

    cells: dict[str, str]
    rows: list[Row]
    colour: str
    # the overrides in which the jobs differ
    swept: dict[str, str]

    @property
    def is_ok(self) -> bool:
        return self.cells["status"] == "ok"

    @property
    def label(self) -> str:
        shown = ", ".join(f"{key}={_short(value)}" for key, value in self.swept.items())
        return shown or f"job {self.cells['number']}"

    def number(self, name: str) -> float | None:
        """Return a number of the line, None where there is none."""
        try:
            return float(self.cells[name])
        except ValueError:
            return None


def is_sweep(folder: Path) -> bool:
    """Return whether a folder is that of a sweep."""
    return (folder / FILE).is_file()


def write_sweep_report(folder: Path) -> Path:
    """Write sweep.html into the folder of a sweep and return its path."""
    path = folder / "sweep.html"
    jobs, fixed = _read(folder)
    sections = {"Learning": _learning(jobs), "Jobs": _table(folder, jobs), "Config": _config(fixed)}
    shown = {title: section(title, body) for title, body in sections.items() if body}
    name = f"{folder.resolve().parent.name} \N{MIDDLE DOT} {folder.resolve().name}"
    header = _header(name, folder, jobs)
    files.write_bytes(path, page(f"{name} \N{MIDDLE DOT} sweep", header, shown).encode())
    return path


def _read(folder: Path) -> tuple[list[SweepJob], dict[str, str]]:
    """Return the jobs, and the overrides that all of them have.

    Raises: StageError when sweep.csv is damaged.
    """
    try:
        with (folder / FILE).open(newline="", errors="replace") as file:
            reader = csv.DictReader(file, restval="")
            names, lines = list(reader.fieldnames or []), list(reader)
    except csv.Error:
        names = []
    if names[: len(COLUMNS)] != list(COLUMNS):
        raise StageError(f"{folder / FILE} is damaged; run the sweep again")
    keys = names[len(COLUMNS) :]
    values = {key: [line[key] for line in lines] for key in keys}
    swept = [key for key in keys if len(set(values[key])) > 1]
    fixed = {key: values[key][0] for key in keys if key not in swept and lines}
    # in the order of starting, so that neighbours in a grid are neighbours in colour
    started = sorted(range(len(lines)), key=lambda index: lines[index]["number"].zfill(9))
    colours = dict(zip(started, plots.job_colours(len(lines)), strict=True))
    jobs = [
        SweepJob(
            cells={name: line[name] for name in COLUMNS},
            rows=metrics.read(folder / line["run"] / "metrics.jsonl"),
            colour=colours[index],
            swept={key: line[key] for key in swept},
        )
        for index, line in enumerate(lines)
    ]
    return jobs, fixed


def _header(name: str, folder: Path, jobs: list[SweepJob]) -> Html:
    num_ok = sum(job.is_ok for job in jobs)
    is_whole = num_ok == len(jobs)
    status = f"{len(jobs)} jobs, all finished" if is_whole else f"{num_ok} of {len(jobs)} finished"
    ranked = [job for job in jobs if job.is_ok and job.number("val_loss") is not None]
    parts: list[Any] = [
        element("h1", name),
        element("p", status, class_="status finished" if is_whole else "status"),
        element("p", _verdict(ranked), class_="verdict"),
    ]
    if ranked:
        seconds = sum(job.number("time_s") or 0.0 for job in jobs)
        peak_gb = max((job.number("peak_gb") or 0.0 for job in jobs), default=0.0)
        best = ranked[0]
        parts.append(
            facts(
                [
                    ("Best", f"{best.number('val_loss'):.4f}", best.label),
                    ("Time of all jobs", _duration(seconds), ""),
                    ("Peak memory", f"{peak_gb:.2f} GB", "of any job"),
                ]
            )
        )
        use = command_line("stage=generate", f"checkpoint={folder / best.cells['run']}")
        parts += [element("p", "To use the best:"), element("pre", use, class_="command")]
    return join(parts)


def _verdict(ranked: list[SweepJob]) -> str:
    if not ranked:
        return "No job has a validation loss to compare by."
    best = ranked[0]
    text = f"{best.label} is best, with a validation loss of {best.number('val_loss'):.4f}"
    if len(ranked) == 1:
        return f"{text}; nothing to compare it with."
    ours, theirs = (job.number("val_loss") or 0.0 for job in ranked[:2])
    margin = 1 - ours / theirs if theirs else 0.0
    return f"{text}, {margin:.1%} under that of {ranked[1].label} ({theirs:.4f})."


def _learning(jobs: list[SweepJob]) -> Html:
    readings = {
        ("val_loss", "Validation loss"): "Held-out clips at fixed noise; lower is better.",
        ("loss", "Training loss"): "It jumps, since every step draws other noise levels; of long "
        "runs the means of neighbouring steps are shown.",
    }
    figures = []
    for (name, title), reading in readings.items():
        curves = [_curve(job, name) for job in jobs]
        if any(len(curve.steps) for curve in curves):
            uri = plots.plot_jobs(curves, is_averaged=name == "loss")
            failed = " Dashed: failed." if any(not job.is_ok for job in jobs) else ""
            legend = " Colours as in the table." if len(jobs) > plots.MOST_IN_LEGEND else ""
            figures.append(plot(title, uri, f"{reading}{failed}{legend}"))
    return element("div", *figures, class_="plots") if figures else Html()


def _curve(job: SweepJob, name: str) -> plots.Curve:
    rows = [row for row in job.rows if row.get(name) is not None]
    steps, values = column(rows, "step"), column(rows, name)
    return plots.Curve(job.label, job.colour, steps, values, not job.is_ok)


def _table(folder: Path, jobs: list[SweepJob]) -> Html:
    keys = list(jobs[0].swept) if jobs else []
    head = ("Job", *keys, "Validation loss", "Steps", "Time", "Peak memory", "Run")
    rows = []
    for job in jobs:
        swatch = element("span", class_="swatch", style=f"background: {job.colour}")
        loss, step, time_s, peak_gb = map(job.number, ("val_loss", "step", "time_s", "peak_gb"))
        rows.append(
            (
                join([swatch, job.cells["number"]]),
                *(_short(value) for value in job.swept.values()),
                None if loss is None else f"{loss:.4f}",
                None if step is None else f"{step:,.0f}",
                None if time_s is None else _duration(time_s),
                None if peak_gb is None else f"{peak_gb:.2f} GB",
                _run(folder, job),
            )
        )
    texts = [i for i, key in enumerate(keys, 1) if any(map(_is_text, (j.swept[key] for j in jobs)))]
    numbers = [i for i in range(1, len(head) - 1) if i not in texts]
    return table(head, rows, numbers) if rows else Html()


def _run(folder: Path, job: SweepJob) -> Any:
    """Return where to look further: why a job failed, or its own report."""
    if not job.is_ok:
        return f"{job.cells['status']}: {job.cells['error']}"
    report = Path(job.cells["run"], "report.html")
    is_there = (folder / report).is_file()
    return element("a", "report", href=str(report)) if is_there else job.cells["run"]


def _config(fixed: dict[str, str]) -> Html:
    if not fixed:
        return Html()
    text = "\n".join(shlex.quote(f"{key}={value}") for key, value in fixed.items())
    return details("What all jobs share", element("pre", text))


def _short(value: str) -> str:
    """Return an override's value; a long number, as a search draws it, with four digits."""
    if _is_text(value):
        return value or "\N{EN DASH}"
    return value if len(value) <= 8 else f"{float(value):.4g}"


def _is_text(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return True
    return False


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
