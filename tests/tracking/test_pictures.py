"""Contact sheets and the overview: sizes, and that the right frames stand in the right place."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosmos_hydra.tracking.pictures import (
    LABEL_HEIGHT,
    contact_sheet,
    draw_overview,
    save_picture,
)


def shades(frames: int, height: int, width: int, first: int = 0, step: int = 10) -> np.ndarray:
    """Return a clip whose frames have one grey each."""
    greys = first + step * np.arange(frames)
    return np.broadcast_to(greys[:, None, None, None], (frames, height, width, 3)).astype(np.uint8)


def test_a_row_shows_six_frames_from_the_first_to_the_last() -> None:
    sheet = contact_sheet([("one", shades(11, 96, 200)), ("two", shades(11, 96, 200, 100))])
    row_height = 96 + LABEL_HEIGHT
    assert sheet.size == (6 * 200, 2 * row_height)
    for row, first in enumerate((0, 100)):
        for column, frame in enumerate((0, 2, 4, 6, 8, 10)):
            centre = (column * 200 + 100, row * row_height + LABEL_HEIGHT + 48)
            assert sheet.getpixel(centre) == (first + 10 * frame,) * 3


@pytest.mark.parametrize(
    ("height", "width", "shown"),
    [(48, 64, (160, 120)), (96, 128, (160, 120)), (240, 320, (320, 240)), (704, 1280, (320, 176))],
)
def test_small_frames_are_enlarged_and_large_ones_shrunk(
    height: int, width: int, shown: tuple[int, int]
) -> None:
    sheet = contact_sheet([("clip", shades(9, height, width))])
    assert sheet.size == (6 * shown[0], shown[1] + LABEL_HEIGHT)


def test_a_short_clip_has_a_column_for_each_frame() -> None:
    assert contact_sheet([("still", shades(1, 96, 160))]).size == (160, 96 + LABEL_HEIGHT)
    assert contact_sheet([("short", shades(3, 96, 160))]).size == (3 * 160, 96 + LABEL_HEIGHT)


def test_the_label_stands_above_its_row_and_never_runs_over() -> None:
    plain = contact_sheet([("", shades(2, 96, 160, first=200))])
    labelled = contact_sheet([("a robot " * 80, shades(2, 96, 160, first=200))])
    assert labelled.size == plain.size
    difference = np.asarray(labelled).astype(int) - np.asarray(plain).astype(int)
    assert difference[:LABEL_HEIGHT].any()
    assert not difference[LABEL_HEIGHT:].any()
    assert not difference[:, -4:].any()


def test_a_label_may_hold_any_character() -> None:
    contact_sheet(
        [("Roboterarm greift \u00fcber \u673a\u5668\u4eba \U0001f916", shades(2, 96, 160))]
    )


def rows() -> list[dict]:
    baselines = {"gaussian_loss": 0.8, "linear_loss": 1.0}
    training = [{"step": step, "loss": 1.0 / step} for step in range(1, 101)]
    return [{"step": s, "val_loss": 1.1, **baselines} for s in (0, 50, 100)] + training


def test_the_overview_stacks_curves_previews_and_videos(tmp_path: Path) -> None:
    heights = {}
    for name, count in (("none", 0), ("data", 1), ("all", 4)):
        run = tmp_path / name
        sheets = ["previews/data.png", "previews/step_000000.png", "previews/step_000100.png"]
        for sheet in [*sheets, "videos/contact_sheet.png"][:count]:
            save_picture(contact_sheet([("clip", shades(6, 96, 160))]), run / sheet)
        run.mkdir(exist_ok=True)
        path = draw_overview(run, rows())
        assert path == run / "overview.png"
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width == 1080
            heights[name] = picture.height
    assert heights["none"] < heights["data"] < heights["all"]


@pytest.mark.parametrize("kept", ["loss", "val_loss", "nothing"])
def test_the_overview_needs_neither_kind_of_row(tmp_path: Path, kept: str) -> None:
    path = draw_overview(tmp_path, [row for row in rows() if kept in row])
    assert path.stat().st_size > 1000
    assert [entry.name for entry in tmp_path.iterdir()] == ["overview.png"]
