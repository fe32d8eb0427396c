"""Equal frames give equal files, whatever else the process has in memory."""

import random
from pathlib import Path

import numpy as np

from cosmos_hydra.data.video import write_mp4


def test_equal_frames_give_equal_bytes_again_and_again(tmp_path: Path) -> None:
    frame, row, column = np.meshgrid(np.arange(9), np.arange(48), np.arange(64), indexing="ij")
    wave = 127 + 100 * np.sin((column + 2 * frame) / 7) * np.cos(row / 5)
    grain = np.random.default_rng(0).integers(-6, 7, (9, 48, 64, 3))
    frames_FHWC = np.clip(wave[..., None] + grain, 0, 255).astype(np.uint8)
    choice, contents, others = random.Random(0), set(), []
    for _ in range(60):
        # moves what the encoder allocates to other addresses
        others.append(bytes(choice.randrange(10, 200_000)))
        if choice.random() < 0.6:
            others.pop(choice.randrange(len(others)))
        write_mp4(tmp_path / "clip.mp4", frames_FHWC, 24.0)
        contents.add((tmp_path / "clip.mp4").read_bytes())
    assert len(contents) == 1
