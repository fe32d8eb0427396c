"""The sections of a report that show numbers: what was learnt, and where the time went."""

import numpy as np

from cosmos_hydra.tracking import report_plots as plots
from cosmos_hydra.tracking.report_html import Html, element, join, plot, table
from cosmos_hydra.tracking.report_run import RunRecord, column

TIMES = {
    "data wait": "data_wait_s",
    "step compute": "step_s",
    "validation": "validation_s",
    "previews": "preview_s",
    "checkpoints": "checkpoint_s",
}
COLOURS = ("#d97706", "#1d4ed8", "#0d9488", "#7c3aed", "#8a8f98")


def learning_section(record: RunRecord) -> Html:
    """Return the plots of losses, gradient norm, learning rate and step time."""
    figures = [*_validation(record), *_training(record)]
    return element("div", *figures, class_="plots") if figures else Html()


def _validation(record: RunRecord) -> list[Html]:
    if not record.validation:
        return []
    reading = (
        "Held-out clips at fixed noise. The dashed lines are denoisers in closed form: the linear "
        "one knows how loud the data is, the Gaussian one the average picture."
    )
    figures = [plot("Validation loss", plots.plot_validation(record.validation), reading)]
    by_sigma = plots.plot_sigmas(record.validation)
    if by_sigma:
        reading = (
            "The same, by how much noise was to be removed. Left: small errors in an almost clean "
            "clip. Right: what a clip looks like at all."
        )
        figures.append(plot("Validation loss by noise level", by_sigma, reading))
    return figures


def _training(record: RunRecord) -> list[Html]:
    optim = record.config["optim"]
    clip = optim["grad_clip"]
    clipped = f"Before clipping at {clip:g}." if clip else "Not clipped."
    jumps = "It jumps, since every step draws other noise levels."
    figures = []
    for name, title, reading, colour in (
        ("loss", "Training loss", jumps, plots.NETWORK),
        ("grad_norm", "Gradient norm", clipped, plots.MUTED),
        ("step_s", "Seconds a step", "Waiting for data is part of it.", plots.MUTED),
    ):
        steps = plots.steps_of_a_point(record.training, name)
        if steps:
            uri = plots.plot_training(record.training, name, colour)
            figures.append(plot(title, uri, f"{_points(steps)} {reading}"))
    if record.training:
        reading = f"Schedule: {optim['schedule']}, {optim['warmup_steps']} steps of warm-up."
        figures.append(plot("Learning rate", plots.plot_rate(record.training), reading))
    return figures


def _points(steps: int) -> str:
    if steps <= 1:
        return "Every step."
    return f"Means of up to {steps:,} steps; the band holds the middle 80 % of them."


def time_section(record: RunRecord) -> Html:
    """Return what the run spent its time on, as far as it was measured."""
    spent = {title: np.nansum(column(record.rows, name)) for title, name in TIMES.items()}
    spent["step compute"] -= spent["data wait"]
    total = sum(spent.values())
    if not total > 0:
        return Html()
    rows, bars = [], []
    for (title, seconds), colour in zip(spent.items(), COLOURS, strict=True):
        if not seconds:
            continue
        swatch = element("span", class_="swatch", style=f"background: {colour}")
        rows.append((join([swatch, title]), f"{seconds:,.1f}", f"{seconds / total:.1%}"))
        bars.append(element("span", style=f"width: {seconds / total:.2%}; background: {colour}"))
    return join(
        [
            element("div", *bars, class_="bar", role="img", aria_label="shares of the time"),
            table(("Spent on", "Seconds", "Share"), rows, numbers=(1, 2)),
            element("p", "Starting up and what came after training do not count.", class_="note"),
        ]
    )
