"""Clips decoded back from their latents: pictures, PSNR, and where they lie."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from raw_videos import small_config, write_moving_video

from cosmos_hydra.config import Config
from cosmos_hydra.data.prepare import prepare
from cosmos_hydra.data.store import SampleStore
from cosmos_hydra.data.video import decode, fit_frames, probe, to_pixels
from cosmos_hydra.models.toy_tokenizer import ToyTokenizer

CPU = torch.device("cpu")
ASKED = ("data.frames=9", "preprocess.preview=true", "preprocess.preview_clips=5")


def configure(root: Path, *overrides: str) -> Config:
    for number in range(5):
        write_moving_video(root / "raw" / f"{number}.mp4", seed=number)
    return small_config(root, *ASKED, *overrides)


def psnr_db(config: Config, store: SampleStore, entry: dict) -> float:
    """Compute it from the video file and the latent on disk, inside the picture."""
    data = config.data
    path = Path(str(data.source)) / entry["video"]
    frames = decode(path, [entry["start_frame"] + offset for offset in range(data.frames)])
    source, box = fit_frames(frames, data.height, data.width, data.fit)
    latent = store.load(entry["sample"]).latent_CFHW
    decoded = to_pixels(ToyTokenizer.load(store.fitted_tokenizer).decode(latent[None])[0])
    apart = source.permute(1, 2, 3, 0).double() - torch.from_numpy(decoded).double()
    apart = apart[:, box.top : box.top + box.height, box.left : box.left + box.width]
    return float(10 * torch.log10(255**2 / apart.square().mean()))


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_previews_show_clips_of_all_videos_with_their_psnr(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fit: str
) -> None:
    caplog.set_level(logging.INFO)
    config = configure(tmp_path, f"data.fit={fit}", "data.height=64")
    store = prepare(config, CPU)
    folder = tmp_path / "samples/previews"
    entries = json.loads((folder / "previews.json").read_text())
    assert len({entry["video"] for entry in entries}) >= 4
    for entry in entries:
        assert (entry["caption"], entry["fps"]) == ("a robot moves", 12.0)
        assert entry["psnr_db"] == pytest.approx(psnr_db(config, store, entry), abs=0.01)
        info = probe(folder / f"{entry['sample']}.mp4")
        assert (info.num_frames, info.height, info.width) == (9, 64, 2 * 64)
        assert info.fps == pytest.approx(12.0)
    names = {path.name for path in folder.iterdir()}
    videos = {f"{entry['sample']}.mp4" for entry in entries}
    assert names == {*videos, "previews.json", "sheet_0.png", "sheet_1.png"}
    heights = [Image.open(folder / f"sheet_{number}.png").height for number in range(2)]
    assert heights[0] == 4 * heights[1]  # four clips, then the fifth
    values = [entry["psnr_db"] for entry in entries]
    line = f"5 clips have a mean PSNR of {np.mean(values):.1f} dB, the least {min(values):.1f} dB"
    assert line in caplog.text
    assert f"pictures: {folder}" in caplog.text


def test_previews_are_made_of_samples_that_are_there_and_replace_older_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = configure(tmp_path)
    prepare(config, CPU)
    config.preprocess.preview_clips = 2
    prepare(config, CPU)
    assert "are up to date" in caplog.text
    assert len(list((tmp_path / "samples/previews").glob("*.mp4"))) == 2


def test_previews_of_nemo_samples_lie_beside_their_folder(tmp_path: Path) -> None:
    prepare(configure(tmp_path, "data.format=nemo", "model.text_tokens=512"), CPU)
    assert (tmp_path / "samples.previews/sheet_0.png").is_file()
    assert all(path.is_file() for path in (tmp_path / "samples").iterdir())
    assert not list((tmp_path / "samples").glob("*preview*"))


def test_without_asking_there_are_none(tmp_path: Path) -> None:
    config = configure(tmp_path)
    config.preprocess.preview = False
    prepare(config, CPU)
    assert not (tmp_path / "samples/previews").exists()
