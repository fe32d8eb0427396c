"""Files that are no video, or a broken one: always UnreadableVideo with a short reason."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from raw_videos import numbered_frames, write_damaged_video, write_video

from cosmos_hydra.data.video import UnreadableVideo, decode, probe

NO_VIDEO = "cannot be decoded (no video file, or cut off)"


def write_picture(path: Path) -> None:
    Image.new("RGB", (64, 48)).save(path, format="png")


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = np.zeros((1, 8000), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_half(path: Path) -> None:
    """The table of contents of an mp4 lies at its end."""
    write_video(path, numbered_frames(20))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "empty file"),
    "text": (lambda path: path.write_text("not a video\n" * 99), NO_VIDEO),
    "zeros": (lambda path: path.write_bytes(bytes(9999)), NO_VIDEO),
    "noise": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(9999)), NO_VIDEO),
    "half": (write_half, NO_VIDEO),
    "picture": (write_picture, NO_VIDEO),
    "sound": (write_sound, "no video stream"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_file_that_is_no_video_gives_a_short_reason(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write, reason = UNREADABLE[kind]
    path = tmp_path / f"{kind}.mp4"
    write(path)
    capfd.readouterr()
    for read in (probe, lambda path: decode(path, [0])):
        with pytest.raises(UnreadableVideo) as caught:
            read(path)
        assert str(caught.value) == reason
    # the decoders say nothing of their own
    assert capfd.readouterr() == ("", "")


def test_a_file_damaged_further_on_fails_where_it_is_damaged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "damaged.mp4"
    write_damaged_video(path, 60, 20, 60)
    capfd.readouterr()
    assert probe(path).num_frames == 60
    with pytest.raises(UnreadableVideo) as caught:
        decode(path, [30, 31])
    assert str(caught.value) == "cannot be decoded (damaged frames)"
    assert capfd.readouterr() == ("", "")


def test_a_file_cut_off_while_it_was_copied_fails_behind_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    write_video(path, numbered_frames(60), options={"g": "12"}, muxer={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.8)])
    left = probe(path).num_frames
    assert 12 < left < 60
    with pytest.raises(UnreadableVideo, match=r"^cannot be decoded \(damaged frames\)$"):
        decode(path, list(range(left)))


def test_a_frame_behind_the_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.mp4"
    write_video(path, numbered_frames(9))
    with pytest.raises(UnreadableVideo, match=r"^has 9 frames, but frame 9 is asked for$"):
        decode(path, [3, 9])
