"""Pictures of a run: contact sheets of clips, and an overview with the loss curves.

Legend: F frames, H W picture height/width, C colours.
"""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cosmos_hydra import files

COLUMNS = 6  # frames of a clip, evenly spread, first and last among them
MIN_FRAME_WIDTH = 160  # smaller frames are enlarged
MAX_FRAME_WIDTH = 320  # larger ones shrunk
LABEL_HEIGHT = 18


def contact_sheet(rows: list[tuple[str, np.ndarray]]) -> Image.Image:
    """Return a picture with one row of frames a clip, each under its label.

    Clips are uint8 [F, H, W, 3], of one size.
    """
    height, width = rows[0][1].shape[1:3]
    shown_width = min(max(width, MIN_FRAME_WIDTH), MAX_FRAME_WIDTH)
    shown = (shown_width, round(height * shown_width / width))
    columns = min(COLUMNS, max(len(clip) for _, clip in rows))
    row_height = shown[1] + LABEL_HEIGHT
    sheet = Image.new("RGB", (columns * shown[0], len(rows) * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (label, clip_FHWC) in enumerate(rows):
        text = textwrap.shorten(label, width=columns * shown[0] // 7, placeholder="...")
        draw.text((4, index * row_height + 3), text, fill="black")
        chosen = np.linspace(0, len(clip_FHWC) - 1, columns).round().astype(int)
        for column, frame in enumerate(chosen):
            picture = Image.fromarray(clip_FHWC[frame]).resize(shown, Image.Resampling.BICUBIC)
            sheet.paste(picture, (column * shown[0], index * row_height + LABEL_HEIGHT))
    return sheet


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG crash-safely."""
    files.write_with(path, lambda temporary: picture.save(temporary, format="PNG"))


def draw_overview(run: Path, rows: list[dict[str, Any]]) -> Path:
    """Write overview.png of a run: loss beside the two baselines, and its newest clips.

    `rows` are those of metrics.jsonl.
    """
    from matplotlib.figure import Figure

    previews = sorted((run / "previews").glob("step_*.png"))
    sheets = [(run / "previews" / "data.png", "training data")]
    if previews:
        first, last = previews[0], previews[-1]
        sheets += [(first, f"preview, {first.stem.replace('_', ' ')}")]
        sheets += [(last, f"preview, {last.stem.replace('_', ' ')}")] if last != first else []
    sheets += [(run / "videos" / "contact_sheet.png", "generated")]
    pictures = [(Image.open(path), title) for path, title in sheets if path.is_file()]
    width_inch = 9.0
    heights = [3.2, *(width_inch * picture.height / picture.width for picture, _ in pictures)]
    figure = Figure(figsize=(width_inch, sum(heights) + 0.5 * len(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _draw_losses(axes[0], rows)
    for axis, (picture, title) in zip(axes[1:], pictures, strict=True):
        axis.imshow(picture)
        axis.set_title(title, loc="left", fontsize=10)
        axis.axis("off")
    path = run / "overview.png"
    files.write_with(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
    return path


def _draw_losses(axis: Any, rows: list[dict[str, Any]]) -> None:
    train = [row for row in rows if row.get("loss") is not None]
    validation = [row for row in rows if row.get("val_loss") is not None]
    if train:
        window = max(1, len(train) // 50)
        losses = np.array([row["loss"] for row in train])
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        steps = [row["step"] for row in train][window - 1 :]
        axis.plot(steps, smooth, color="0.75", label=f"training (mean of {window})")
    if validation:
        steps = [row["step"] for row in validation]
        highest = max(max(row["val_loss"], row["linear_loss"]) for row in validation)
        axis.plot(
            steps,
            [row["val_loss"] for row in validation],
            "o-",
            color="tab:blue",
            label="validation",
        )
        for key, colour in (("gaussian_loss", "tab:orange"), ("linear_loss", "tab:red")):
            name = key.removesuffix("_loss")
            axis.axhline(
                validation[-1][key], color=colour, linestyle="--", label=f"{name} denoiser"
            )
        axis.set_ylim(0, 1.15 * highest)
    axis.set_xlabel("step")
    axis.set_ylabel("loss")
    if train or validation:
        axis.legend(fontsize=8)
