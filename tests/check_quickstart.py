"""Check what the quickstart left in a folder: `python check_quickstart.py FOLDER SECONDS`."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cosmos_hydra.data.video import decode, probe

LIMIT_S = 240  # 78 s on two quiet cores; the same took 141 to 175 s on slow shared ones
GAUSSIAN_SHARE = 0.8  # at least 20 % under the Gaussian denoiser


def check(folder: Path) -> str:
    """Return the figures of the run; an assertion says what is missing."""
    run = folder / "runs/quickstart"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validation = [row for row in rows if "val_loss" in row]
    first, last = validation[0], validation[-1]
    assert first["step"] == 0, first
    assert last["val_loss"] < GAUSSIAN_SHARE * last["gaussian_loss"], last
    assert last["val_loss"] < last["linear_loss"], last
    assert Image.open(run / "overview.png").size[0] >= 900
    videos = sorted((run / "videos").glob("*_??????.mp4"))
    assert len(videos) == 4, videos
    movement = []
    for video in videos:
        frames = decode(video, list(range(probe(video).num_frames))).float().numpy()
        assert frames.shape == (17, 96, 128, 3), frames.shape
        assert (video.with_suffix(".json")).is_file()
        movement.append(np.abs(frames[-1] - frames[0]).mean())
    assert max(movement) > 1.0, f"nothing moves: {movement}"
    return (
        f"validation loss {first['val_loss']:.3f} -> {last['val_loss']:.3f}, "
        f"gaussian {last['gaussian_loss']:.3f}, linear {last['linear_loss']:.3f}"
    )


if __name__ == "__main__":
    seconds = int(sys.argv[2])
    sys.stdout.write(f"quickstart: {check(Path(sys.argv[1]))}, {seconds} s\n")
    assert seconds <= LIMIT_S, f"{seconds} s is more than {LIMIT_S} s"
