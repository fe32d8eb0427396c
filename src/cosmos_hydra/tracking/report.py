"""report.html: one file that shows a run to somebody who was not there.

It is made from what the run directory holds at the time, loads no model, and can be made again
at any time. What is missing in the run is missing in the page.
"""

import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_hydra import config as schema
from cosmos_hydra import files
from cosmos_hydra.changes import flat
from cosmos_hydra.config import Config
from cosmos_hydra.tracking.report_clips import (
    data_section,
    generated_section,
    hardest_section,
    preview_section,
)
from cosmos_hydra.tracking.report_html import (
    Html,
    Media,
    details,
    element,
    facts,
    join,
    page,
    section,
    table,
)
from cosmos_hydra.tracking.report_numbers import learning_section, time_section
from cosmos_hydra.tracking.report_run import RunRecord, column


def write_report(run: Path, config: Config) -> Path:
    """Write report.html into a run directory and return its path.

    `config` is shown while the run has none of its own.
    """
    path = run / "report.html"
    record = RunRecord(run, schema.to_dict(config))
    files.write_bytes(path, _document(record).encode())
    return path


def _document(record: RunRecord) -> str:
    media = Media(record.run)
    sections = {
        "Learning": learning_section(record),
        "Before and after": preview_section(record, media),
        "Generated videos": generated_section(record, media),
        "Hardest clips": hardest_section(record),
        "Data": data_section(record, media),
        "Time": time_section(record),
        "Config": _config(record),
    }
    shown = {title: section(title, body) for title, body in sections.items() if body}
    name = record.run.resolve().name
    return page(f"{name} \N{MIDDLE DOT} report", _header(record, name, media), shown)


def _header(record: RunRecord, name: str, media: Media) -> Html:
    is_finished = record.step >= record.max_steps
    place = f"at step {record.step:,} of {record.max_steps:,}"
    if is_finished:
        status = f"Finished {place}"
    elif record.is_running:
        status = f"Running, {place}"
    else:
        status = f"Stopped {place}" if record.step else "Not trained yet"
    command = record.described.get("command")
    return join(
        [
            element("h1", name),
            element("p", status, class_="status finished" if is_finished else "status"),
            element("p", _verdict(record), class_="verdict"),
            facts(_figures(record)),
            join([element("p", "To repeat it:"), element("pre", command, class_="command")])
            if command
            else "",
            media.remark(),
        ]
    )


def _verdict(record: RunRecord) -> str:
    if record.diverged_at is not None:
        return (
            f"The validation loss at step {record.diverged_at:,} is no finite number: training has "
            f"diverged."
        )
    if not record.validation:
        return "No validation so far, so nothing says yet whether the network learns."
    newest = record.validation[-1]
    ours, gaussian, linear = (newest.get(f"{k}_loss") for k in ("val", "gaussian", "linear"))
    loss = f"The validation loss is {ours:.3f} at step {newest['step']:,}"
    if gaussian is None or linear is None:
        return f"{loss}."
    if ours < gaussian:
        return (
            f"{loss}, {ours / gaussian:.0%} of what a Gaussian denoiser reaches ({gaussian:.3f}): "
            f"the network has learnt structure that the average picture does not hold."
        )
    if ours < linear:
        return (
            f"{loss}, over the {gaussian:.3f} of a Gaussian denoiser and under the {linear:.3f} of "
            f"a linear one: so far the network knows no more than the average picture."
        )
    return (
        f"{loss}, over the {gaussian:.3f} of a Gaussian denoiser and the {linear:.3f} of a linear "
        f"one: so far the network has learnt nothing."
    )


def _figures(record: RunRecord) -> list[tuple[str, Any, str]]:
    """Return the figures at the top: name, value and remark; unknown ones are left out."""
    figures: list[tuple[str, Any, str]] = []
    parameters = record.described.get("parameters")
    size = f"{parameters / 1e6:,.1f} M parameters" if parameters else ""
    figures.append(("Model", record.config["model"]["name"], size))
    device = record.described.get("device") or record.manifest.get("effective") or {}
    if device:
        precision = record.described.get("precision") or device.get("precision")
        figures.append(("Device", device.get("name") or device.get("device"), precision or ""))
    if record.num_samples:
        train, held_out = record.num_samples
        figures.append(("Training clips", f"{train:,}", f"{held_out:,} held out"))
    step_s = _median(record, "step_s")
    if step_s is not None:
        tokens = _median(record, "tokens_per_s")
        figures.append(("Median step", f"{step_s:.3g} s", f"{tokens or 0:,.0f} tokens/s"))
    memory_gb = column(record.training, "mem_gb")
    if np.isfinite(memory_gb).any():
        figures.append(("Peak memory", f"{np.nanmax(memory_gb):.2f} GB", ""))
    if record.skipped:
        figures.append(("Skipped steps", len(record.skipped), "loss or gradient not finite"))
    return figures


def _median(record: RunRecord, name: str) -> float | None:
    values = column(record.training, name)
    return float(np.nanmedian(values)) if np.isfinite(values).any() else None


def _config(record: RunRecord) -> Html:
    parts: list[Any] = []
    changes = record.changes
    if changes:
        rows = [(_key(key), _shown(old), _shown(new)) for key, old, new in changes]
        parts.append(table(("Differs from the default", "Default", "This run"), rows))
    elif changes is not None:
        parts.append(element("p", "Nothing differs from the defaults."))
    whole = "\n".join(f"{key}={_shown(value)}" for key, value in flat(record.config).items())
    parts.append(details("The whole config", element("pre", whole)))
    versions = record.described.get("versions") or record.manifest.get("versions") or {}
    if versions:
        names = ", ".join(f"{name} {version}" for name, version in versions.items())
        parts.append(element("p", f"Made with {names}.", class_="note"))
    return join(parts)


def _key(key: str) -> Html:
    """Return a dotted key that may break behind its dots."""
    return element("code", Html(html.escape(key).replace(".", ".<wbr>")))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
