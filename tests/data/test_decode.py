"""Reading frames: exactly those asked for, from every kind of file that users have."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from raw_videos import (
    CLOSED_GOPS,
    number_of,
    numbered_frames,
    write_damaged_video,
    write_video,
)

from cosmos_hydra.data.video import decode, probe, write_mp4

# kinds in which readers that trust the container land on wrong frames are here on purpose
KINDS = {
    "one_group_of_pictures.mp4": ("libx264", {"bf": "3", "g": "250"}),
    "closed_groups.mp4": ("libx264", CLOSED_GOPS),
    "open_groups.mp4": ("libx264", {"g": "20", "x264-params": "open-gop=1:scenecut=0"}),
    "hevc.mp4": ("libx265", {"x265-params": "log-level=none:keyint=20"}),
    "hevc.mkv": ("libx265", {"x265-params": "log-level=none:keyint=20:open-gop=0"}),
    "mpeg4.mp4": ("mpeg4", {"g": "20"}),
    "mpeg4_with_b_frames.m4v": ("mpeg4", {"g": "20", "bf": "2"}),
    "without_time_stamps.avi": ("libx264", {"g": "20"}),
    "vp9.webm": ("libvpx-vp9", {"g": "20", "deadline": "realtime", "cpu-used": "8"}),
}


def read_numbers(path: Path, indices: list[int]) -> list[int]:
    return [number_of(picture) for picture in decode(path, indices)]


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    write_video(path, numbered_frames(160), options={"bf": "3", "g": "120"})
    with av.open(str(path)) as container:
        kinds = [PictureType(frame.pict_type) for frame in container.decode(video=0)]
    assert kinds.count(PictureType.B) > 60
    assert kinds.count(PictureType.I) == 2
    return path


def test_200_random_sets_of_frames_come_back_exactly(long_video: Path) -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        indices = generator.integers(0, 160, generator.integers(1, 10)).tolist()
        assert read_numbers(long_video, indices) == indices


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_exact_in_every_kind_of_file(name: str, tmp_path: Path) -> None:
    codec, options = KINDS[name]
    path = tmp_path / name
    # FFmpeg would take .m4v for a stream without a container
    written = path.with_suffix(".mp4")
    write_video(written if path.suffix == ".m4v" else path, numbered_frames(70), codec, options)
    if path.suffix == ".m4v":
        written.rename(path)
    generator = np.random.default_rng(1)
    for _ in range(8):
        indices = generator.integers(0, 70, 6).tolist()
        assert read_numbers(path, indices) == indices
    for start in (0, 19, 33, 61):
        clip = list(range(start, start + 9))
        assert read_numbers(path, clip) == clip


@pytest.mark.parametrize("width", [32, 48, 84, 96, 144])
def test_narrow_videos_keep_their_three_colours(width: int, tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, width).astype(np.uint8)
    frames = np.broadcast_to(ramp[None, None, :, None], (6, 48, width, 3)) * np.uint8(1)
    frames[3, :, :, 1:] = 0
    path = tmp_path / "narrow.mp4"
    write_mp4(path, frames, 10.0)
    info = probe(path)
    assert (info.height, info.width, info.num_frames) == (48, width, 6)
    got = decode(path, [5, 3]).numpy().astype(int)
    assert got.shape == (2, 48, width, 3)
    # 4:2:0 colour blurs the red frame, the grey one is exact but for compression
    assert np.abs(got[0] - frames[5]).max() < 12
    assert np.abs(got[1].mean((0, 1)) - frames[3].mean((0, 1))).max() < 12


def test_probe_tells_size_rate_and_time_of_every_frame(tmp_path: Path) -> None:
    path = tmp_path / "steady.mp4"
    write_video(path, numbered_frames(12))
    info = probe(path)
    assert (info.num_frames, info.fps, info.height, info.width) == (12, 25.0, 64, 160)
    np.testing.assert_allclose(info.start_s, np.arange(12) / 25, atol=1e-6)


def test_probe_reads_the_time_stamps_of_a_variable_frame_rate(tmp_path: Path) -> None:
    steps_ms = np.random.default_rng(2).integers(15, 90, 59)
    times_ms = [0, *np.cumsum(steps_ms).tolist()]
    path = tmp_path / "variable.mp4"
    write_video(path, numbered_frames(60), options={"bf": "3"}, times_ms=times_ms)
    info = probe(path)
    np.testing.assert_allclose(info.start_s, np.array(times_ms) / 1000, atol=1e-6)
    assert read_numbers(path, [7, 40, 59]) == [7, 40, 59]


def test_a_file_without_time_stamps_is_taken_as_steady(tmp_path: Path) -> None:
    path = tmp_path / "plain.avi"
    write_video(path, numbered_frames(30), fps=20)
    np.testing.assert_allclose(probe(path).start_s, np.arange(30) / 20, atol=1e-6)


def test_only_frames_that_are_needed_are_decoded(tmp_path: Path) -> None:
    """Frames 20 to 39 are damaged: whoever decoded them on the way to 40 would fail."""
    path = tmp_path / "middle.mp4"
    write_damaged_video(path, 60, 20, 40)
    assert read_numbers(path, [45, 41, 59]) == [45, 41, 59]
    assert read_numbers(path, [0, 4]) == [0, 4]


@pytest.mark.parametrize(
    ("degrees", "matrix"),
    [(90, (0, 1, 0, -1, 0, 0)), (180, (-1, 0, 0, 0, -1, 0)), (270, (0, -1, 0, 1, 0, 0))],
)
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_video_filmed_upright_is_turned(
    degrees: int, matrix: tuple[int, ...], codec: str, tmp_path: Path
) -> None:
    path = tmp_path / "turned.mp4"
    write_video(path, numbered_frames(30), codec, {"bf": "2", "g": "10"})
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    content = path.read_bytes()
    place = content.index(identity, content.index(b"tkhd"))
    turned = struct.pack(">6i", *(value << 16 for value in matrix))
    path.write_bytes(content[:place] + turned + content[place + len(turned) :])
    info = probe(path)
    assert (info.height, info.width) == ((64, 160) if degrees == 180 else (160, 64))
    pictures = decode(path, [21, 6]).numpy()
    # the display matrix turns clockwise by `degrees`
    upright = [np.rot90(picture, degrees // 90) for picture in pictures]
    assert [number_of(picture) for picture in upright] == [21, 6]
