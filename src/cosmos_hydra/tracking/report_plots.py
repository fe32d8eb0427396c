"""Plots of a run as SVG pictures: few points however long the run, text as text.

Sizes are chosen so that a plot can be read at the width of a phone and of half a desktop page.
"""

import base64
import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from cosmos_hydra.tracking.report_run import Row, column

SIZE_INCH = (4.6, 2.7)
MAX_POINTS = 80
FEW_POINTS = 20  # up to here each point is marked
WIDE_RANGE = 30.0  # a highest value over a lowest one from which an axis is logarithmic
WIDE_RANGE_OF_JOBS = 10.0  # sooner, since they differ most where they are low
INK, MUTED, RULE = "#1f2933", "#5c6773", "#e4e7eb"
NETWORK, FIRST, GAUSSIAN, LINEAR, SKIPPED = "#1d4ed8", "#93b4f5", "#d97706", "#8a8f98", "#c81e1e"
JOBS = ("#1d4ed8", "#d97706", "#0d9488", "#be185d", "#7c3aed", "#4d7c0f", "#0891b2", "#78716c")
MOST_IN_LEGEND = 12
STYLE: dict[str, Any] = {
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 8.5,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    # the same run gives the same bytes
    "svg.hashsalt": "report",
    "svg.fonttype": "none",
}
# plots are laid out with the font that comes with matplotlib and shown with the reader's
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Curve:
    """A value of one job of a sweep over its steps."""

    label: str
    colour: str
    steps: np.ndarray
    values: np.ndarray
    is_failed: bool


def plot_training(rows: list[Row], name: str, colour: str = NETWORK) -> str:
    """Return a value of the training steps over steps as the URI of a picture.

    Long runs are shown as means of equally many steps with the band of the middle 80 %; skipped
    steps are marked at the foot.
    """
    steps, values = column(rows, "step"), column(rows, name)
    is_known = np.isfinite(values)
    skipped = [row["step"] for row in rows if row.get("skipped")]
    with rc_context(STYLE):
        figure, axis = _axis("step")
        parts = _parts(steps[is_known], values[is_known])
        centres = [part_steps.mean() for part_steps, _ in parts]
        means = np.array([part.mean() for _, part in parts])
        if is_known.sum() > MAX_POINTS:
            low, high = np.array([np.quantile(part, (0.1, 0.9)) for _, part in parts]).T
            axis.fill_between(centres, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.plot(centres, means, _marks(len(parts)), color=colour)
        if (means > 0).all() and means.max() > WIDE_RANGE * means.min():
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
        if skipped:
            shown = skipped[:: max(1, len(skipped) // MAX_POINTS)]
            foot = axis.get_xaxis_transform()
            axis.plot(
                *(shown, np.full(len(shown), 0.03), "|"),
                color=SKIPPED,
                transform=foot,
                clip_on=False,
                markersize=9,
                label="skipped step",
            )
            _legend(axis)
        _steps_axis(axis, steps)
        return _uri(figure)


def steps_of_a_point(rows: list[Row], name: str) -> int:
    """Return how many steps a point of `plot_training` stands for."""
    count = int(np.isfinite(column(rows, name)).sum())
    return -(-count // MAX_POINTS) if count else 0


def plot_rate(rows: list[Row]) -> str:
    """Return the learning rate over steps as the URI of a picture."""
    steps, rates = column(rows, "step"), column(rows, "lr")
    chosen = np.unique(np.linspace(0, len(rows) - 1, 3 * MAX_POINTS).astype(int))
    with rc_context(STYLE):
        figure, axis = _axis("step")
        axis.plot(steps[chosen], rates[chosen], _marks(len(chosen)), color=NETWORK)
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.yaxis.set_major_formatter(lambda rate, _: f"{rate:.3g}")
        _steps_axis(axis, steps)
        return _uri(figure)


def plot_validation(rows: list[Row]) -> str:
    """Return the validation loss over steps beside the two baselines as the URI of a picture."""
    steps, losses = column(rows, "step"), column(rows, "val_loss")
    chosen = np.unique(np.linspace(0, len(rows) - 1, 3 * MAX_POINTS).astype(int))
    with rc_context(STYLE):
        figure, axis = _axis("step")
        axis.plot(
            steps[chosen], losses[chosen], _marks(len(chosen)), color=NETWORK, label="network"
        )
        for name, colour in (("gaussian", GAUSSIAN), ("linear", LINEAR)):
            value = rows[-1].get(f"{name}_loss")
            if value is not None:
                axis.axhline(value, color=colour, linestyle=(0, (4, 2)), label=f"{name} denoiser")
        axis.set_ylim(bottom=0)
        _legend(axis)
        _steps_axis(axis, steps)
        return _uri(figure)


def plot_sigmas(rows: list[Row]) -> str | None:
    """Return the newest validation loss over sigma, beside the first and the baselines' losses."""
    newest, first = rows[-1], rows[0]
    prefix = "val_loss_sigma_"
    names = [name.removeprefix(prefix) for name in newest if name.startswith(prefix)]
    if not names:
        return None
    sigmas = [float(name) for name in names]
    curves = [
        (newest, "val", NETWORK, "-", f"step {newest['step']:,}"),
        (newest, "gaussian", GAUSSIAN, (0, (4, 2)), "gaussian denoiser"),
        (newest, "linear", LINEAR, (0, (4, 2)), "linear denoiser"),
    ]
    if first is not newest:
        curves.insert(1, (first, "val", FIRST, "-", f"step {first['step']:,}"))
    with rc_context(STYLE):
        figure, axis = _axis("noise level sigma")
        for row, kind, colour, line, label in curves:
            values = column([{"v": row.get(f"{kind}_loss_sigma_{name}")} for name in names], "v")
            axis.plot(sigmas, values, color=colour, linestyle=line, marker="o", label=label)
        axis.set_xscale("log")
        axis.set_xticks(_spread(sigmas), labels=[f"{sigma:.2g}" for sigma in _spread(sigmas)])
        axis.set_xticks([], minor=True)
        axis.set_ylim(bottom=0)
        _legend(axis)
        return _uri(figure)


def plot_jobs(curves: list[Curve], is_averaged: bool) -> str:
    """Return a curve a job, the first on top, as the URI of a picture; failed jobs are dashed.

    The axis shows what differs: it need not begin at 0, and is logarithmic over a wide range.
    """
    with rc_context(STYLE):
        figure, axis = _axis("step")
        lowest, highest, last = np.inf, -np.inf, 0.0
        for order, curve in enumerate(curves):
            is_known = np.isfinite(curve.values)
            steps, values = curve.steps[is_known], curve.values[is_known]
            if not len(steps):
                continue
            if is_averaged:
                parts = _parts(steps, values)
                steps, values = np.array([(s.mean(), v.mean()) for s, v in parts]).T
            line = (0, (3, 1.5)) if curve.is_failed else "-"
            mark = "o" if len(steps) <= FEW_POINTS else None
            label = curve.label if len(curves) <= MOST_IN_LEGEND else None
            style = {"linestyle": line, "marker": mark, "color": curve.colour, "label": label}
            axis.plot(steps, values, zorder=3 - order / len(curves), **style)
            lowest, highest = min(lowest, values.min()), max(highest, values.max())
            last = max(last, steps[-1])
        if lowest > 0 and highest > WIDE_RANGE_OF_JOBS * lowest:
            axis.set_yscale("log")
        if len(curves) <= MOST_IN_LEGEND:
            _legend(axis)
        _steps_axis(axis, np.array([0.0, last]))
        return _uri(figure)


def job_colours(count: int) -> list[str]:
    """Return a colour for each of so many jobs."""
    if count <= len(JOBS):
        return list(JOBS[:count])
    return [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0, 0.92, count))]


def _axis(label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=SIZE_INCH, layout="constrained")
    axis = figure.subplots()
    axis.set_xlabel(label)
    return figure, axis


def _parts(steps: np.ndarray, values: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    count = min(len(steps), MAX_POINTS) or 1
    return list(zip(np.array_split(steps, count), np.array_split(values, count), strict=True))


def _marks(count: int) -> str:
    return "o-" if count <= FEW_POINTS else "-"


def _steps_axis(axis: Any, steps: np.ndarray) -> None:
    axis.set_xlim(min(0, steps[0]), max(steps[-1], 1) * 1.02)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if steps[-1] >= 10_000:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def _legend(axis: Any) -> None:
    columns = 3 if len(axis.get_legend_handles_labels()[1]) == 3 else 2
    axis.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=columns,
        borderaxespad=0.2,
        columnspacing=1.4,
    )


def _spread(sigmas: list[float]) -> list[float]:
    return sigmas[:: -(-len(sigmas) // 8)]


def _uri(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = re.sub(r"font-family: [^;]*", f"font-family: {FONTS}", file.getvalue().decode())
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
