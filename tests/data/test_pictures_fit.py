"""Geometry of crop, pad and stretch; pixels to [-1, 1] and back; written files."""

import hashlib
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from cosmos_hydra.config import Fit
from cosmos_hydra.data.video import (
    ContentBox,
    decode,
    fit_frames,
    probe,
    to_pixels,
    to_signed,
    write_mp4,
)

SIZES = [(48, 64), (64, 48), (47, 65), (33, 111), (111, 33), (17, 17), (200, 9), (720, 1280)]


def random_frames(height: int, width: int, count: int = 2) -> torch.Tensor:
    generator = np.random.default_rng(height * 1000 + width)
    coarse = generator.integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    pictures = [np.asarray(Image.fromarray(picture).resize((width, height))) for picture in coarse]
    return torch.from_numpy(np.stack(pictures))


def pillow_resize(frames_FHWC: torch.Tensor, height: int, width: int) -> np.ndarray:
    """Antialiased bilinear resize by an independent implementation."""
    return np.stack(
        [
            np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
            for picture in frames_FHWC.numpy()
        ]
    )


def assert_close(video_CFHW: torch.Tensor, expected_FHWC: np.ndarray) -> None:
    got = video_CFHW.permute(1, 2, 3, 0).numpy().astype(int)
    assert got.shape == expected_FHWC.shape
    assert np.abs(got - expected_FHWC).max() <= 2


@pytest.mark.parametrize("size", SIZES)
def test_crop_fills_the_clip_from_the_middle_of_the_picture(size: tuple[int, int]) -> None:
    frames = random_frames(*size)
    video, box = fit_frames(frames, 48, 80, Fit.crop)
    scale = max(48 / size[0], 80 / size[1])
    height, width = max(48, round(size[0] * scale)), max(80, round(size[1] * scale))
    # the aspect ratio is kept to a pixel and one side fits exactly
    assert height == 48 or width == 80
    top, left = (height - 48) // 2, (width - 80) // 2
    expected = pillow_resize(frames, height, width)[:, top : top + 48, left : left + 80]
    assert_close(video, expected)
    assert box == ContentBox(0, 0, 48, 80)


@pytest.mark.parametrize("size", SIZES)
def test_pad_shows_the_whole_picture_between_black_borders(size: tuple[int, int]) -> None:
    frames = random_frames(*size)
    video, box = fit_frames(frames, 48, 80, Fit.pad)
    scale = min(48 / size[0], 80 / size[1])
    assert box.height == 48 or box.width == 80
    assert abs(box.height - size[0] * scale) <= 0.5
    assert abs(box.width - size[1] * scale) <= 0.5
    # evenly on both sides, to a pixel
    assert abs(48 - box.height - 2 * box.top) <= 1
    assert abs(80 - box.width - 2 * box.left) <= 1
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    assert_close(video[:, :, rows, columns], pillow_resize(frames, box.height, box.width))
    outside = video.clone()
    outside[:, :, rows, columns] = 0
    assert video.shape == (3, 2, 48, 80)
    assert not outside.any()


@pytest.mark.parametrize("size", SIZES)
def test_stretch_takes_the_whole_picture_and_no_border(size: tuple[int, int]) -> None:
    frames = random_frames(*size)
    video, box = fit_frames(frames, 48, 80, Fit.stretch)
    assert_close(video, pillow_resize(frames, 48, 80))
    assert box == ContentBox(0, 0, 48, 80)


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    frames = torch.randint(0, 256, (19, 48, 80, 3), dtype=torch.uint8)
    for fit in Fit:
        video, _ = fit_frames(frames, 48, 80, fit)
        assert torch.equal(video, frames.permute(3, 0, 1, 2))


def test_every_pixel_value_survives_the_way_to_signed_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(3, 2, 16, 16)
    signed = to_signed(pixels)
    assert signed.dtype == torch.float32
    assert (signed.min(), signed.max()) == (-1, 1)
    assert np.array_equal(to_pixels(signed), pixels.permute(1, 2, 3, 0).numpy())
    # what a model overshoots is cut, not wrapped around
    assert np.unique(to_pixels(torch.tensor([-1.5, 1.5]).view(1, 1, 1, 2))).tolist() == [0, 255]


def test_equal_frames_give_equal_bytes(tmp_path: Path) -> None:
    frames = random_frames(48, 64, 12).numpy()
    digests = set()
    for name in ("one.mp4", "two.mp4"):
        write_mp4(tmp_path / name, frames, 12.0)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("fps", [3.0, 12.0, 29.97, 30000 / 1001, 60.0])
def test_a_written_video_keeps_pictures_and_rate(fps: float, tmp_path: Path) -> None:
    frames = random_frames(48, 192, 10).numpy()
    write_mp4(tmp_path / "a.mp4", frames, fps)
    info = probe(tmp_path / "a.mp4")
    assert (info.num_frames, info.height, info.width) == (10, 48, 192)
    assert info.fps == pytest.approx(fps, rel=1e-4)
    got = decode(tmp_path / "a.mp4", list(range(10))).numpy()
    error = np.mean((got.astype(float) - frames) ** 2)
    assert 10 * np.log10(255**2 / error) > 30
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
