"""Sixty files as users have them: each is decoded, or refused with a reason, and none hangs."""

import os
import random
import re
import socket
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import pytest
from PIL import Image
from raw_videos import number_of, numbered_frames, write_video

from cosmos_hydra.data.decode_pool import DecodePool, UnreadableVideo

COUNT = 40
NO_VIDEO = r"cannot be decoded \(no video file, or cut off\)"
DAMAGED = r"cannot be decoded \(damaged frames\)"
FAST = {"movflags": "faststart"}
FLIPPED_SAMPLED, FLIPPED = 40, 2000
LIMIT_S = 20.0


@cache
def sound_bytes(suffix: str, codec: str = "libx264", **muxer: str) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder, f"sound.{suffix}")
        write_video(path, numbered_frames(COUNT), codec, {"g": "12"}, muxer=muxer)
        return path.read_bytes()


def write_cut(path: Path, share: float, **muxer: str) -> None:
    content = sound_bytes(path.suffix[1:], **muxer)
    path.write_bytes(content[: int(len(content) * share)])


def write_patched(path: Path, old: bytes, new: bytes) -> None:
    content = sound_bytes("mp4")
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def write_size(path: Path, width: int, height: int) -> None:
    """Say another size in the sample description of an MP4."""
    write_patched(path, struct.pack(">2H", 160, 64), struct.pack(">2H", width, height))


def write_sound(path: Path, has_cover: bool = False) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        if has_cover:
            cover = container.add_stream("mjpeg")
            cover.height, cover.width, cover.pix_fmt = 64, 64, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if has_cover:
            picture = np.zeros((64, 64, 3), np.uint8)
            container.mux(cover.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(cover.encode())


def write_times(path: Path, times: list[int]) -> None:
    """Write key frames with any time stamps, orderly or not."""
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 160, "yuv420p"
        stream.options = {"g": "1", "tune": "zerolatency"}
        for number, picture in enumerate(numbered_frames(len(times))):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            for packet in stream.encode(frame):
                packet.pts = times[number]
                packet.dts, packet.time_base = number - 99, Fraction(1, 25)
                container.mux(packet)


def write_resized(path: Path) -> None:
    """Halfway, another size begins, as when a camera is restarted."""
    parts = []
    for number, side in enumerate((64, 128)):
        part = path.with_name(f"part{number}.mp4")
        write_video(part, np.zeros((5, side, 160, 3), np.uint8), "mpeg4")
        parts.append(part)
    with av.open(str(path), "w") as out:
        stream = None
        for number, part in enumerate(parts):
            with av.open(str(part)) as container:
                template = container.streams.video[0]
                stream = stream or out.add_stream_from_template(template)
                for packet in container.demux(template):
                    if packet.size:
                        offset = int(number / packet.time_base)
                        packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                        head = bytes(template.codec_context.extradata)
                        joined = av.Packet(head + bytes(packet))
                        joined.pts, joined.dts = packet.pts, packet.dts
                        joined.time_base, joined.is_keyframe = packet.time_base, packet.is_keyframe
                        joined.stream = stream
                        out.mux(joined)


def write_noise_inside(path: Path) -> None:
    """Keep the tables, replace all that they point at."""
    content = bytearray(sound_bytes("mp4"))
    begin, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    content[begin:end] = random.Random(0).randbytes(end - begin)
    path.write_bytes(content)


def named(name: str) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        renamed = path.parent / name
        renamed.write_bytes(sound_bytes("mp4"))
        return renamed

    return write


def linked(target: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.with_name("target.mp4").write_bytes(sound_bytes("mp4"))
        path.symlink_to(target)

    return write


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def frames(codec: str, count: int = COUNT, **more: object) -> Callable[[Path], None]:
    return lambda path: write_video(path, numbered_frames(count), codec, **more)  # type: ignore[arg-type]


# what is expected: a number of frames, or a reason; a cut may leave either, but never silence
EITHER = rf"{NO_VIDEO}|{DAMAGED}|no frames|no video stream"
FILES: dict[str, tuple[Callable, int | str]] = {
    **{f"cut_{p}.mp4": (partial(write_cut, share=p / 100), EITHER) for p in range(9, 100, 10)},
    **{
        f"cut_early_table_{p}.mp4": (partial(write_cut, share=p / 100, **FAST), EITHER)
        for p in range(9, 100, 10)
    },
    **{f"cut_{p}.mkv": (partial(write_cut, share=p / 100), EITHER) for p in (1, 30, 60, 95)},
    **{f"cut_{p}.avi": (partial(write_cut, share=p / 100), EITHER) for p in (1, 30, 60, 95)},
    "empty.mp4": (lambda path: path.write_bytes(b""), "empty file"),
    "one_byte.mp4": (lambda path: path.write_bytes(b"\0"), NO_VIDEO),
    "zeros.mp4": (lambda path: path.write_bytes(bytes(9999)), NO_VIDEO),
    "noise.mp4": (lambda path: path.write_bytes(random.Random(1).randbytes(9999)), NO_VIDEO),
    "text.mp4": (lambda path: path.write_text("not a video\n" * 99), NO_VIDEO),
    "picture.mp4": (lambda path: Image.new("RGB", (64, 48)).save(path, format="png"), NO_VIDEO),
    "moving_picture.mp4": (
        lambda path: Image.new("RGB", (64, 48)).save(path, format="gif"),
        NO_VIDEO,
    ),
    "head_alone.mp4": (lambda path: path.write_bytes(sound_bytes("mp4")[:32]), NO_VIDEO),
    "without_table.mp4": (partial(write_patched, old=b"moov", new=b"junk"), NO_VIDEO),
    "without_data.mp4": (
        lambda path: path.write_bytes(
            sound_bytes("mp4")[:32] + sound_bytes("mp4")[sound_bytes("mp4").index(b"moov") - 4 :]
        ),
        EITHER,
    ),
    "noise_inside.mp4": (write_noise_inside, DAMAGED + "|" + NO_VIDEO),
    "unknown_codec.mp4": (
        partial(write_patched, old=b"avc1\0", new=b"zzzz\0"),
        r".*\(codec unknown\)",
    ),
    "encrypted.mp4": (partial(write_patched, old=b"avc1\0", new=b"encv\0"), r".*\(codec unknown\)"),
    "sound_alone.mp4": (write_sound, "no video stream"),
    "sound_with_cover.mp4": (partial(write_sound, has_cover=True), "no video stream"),
    "one_frame.mp4": (frames("libx264", 1), 1),
    "variable.mp4": (frames("libx264", 5, times_ms=[0, 9, 70, 71, 300]), 5),
    "ten_bits.mp4": (frames("libx265", options={"x265-params": "log-level=none"}), COUNT),
    "wide.mkv": (lambda path: write_video(path, np.zeros((2, 8, 65534, 3), np.uint8), "ffv1"), 2),
    "said_to_be_huge.mp4": (partial(write_size, width=65535, height=65535), COUNT),
    "said_to_be_empty.mp4": (partial(write_size, width=0, height=0), COUNT),
    "resized.mp4": (write_resized, "picture size changes from 160x64 to 160x128"),
    "equal_times.mkv": (partial(write_times, times=[0, 1, 1, 1, 4, 5]), 6),
    "backward_times.mkv": (partial(write_times, times=[9, 7, 8, 3, 4, 5]), 6),
    "far_times.mkv": (partial(write_times, times=[0, 1, 2, 10**7, 10**7 + 1, 10**8]), 6),
    "latin_title.mkv": (
        lambda path: path.write_bytes(sound_bytes("mkv").replace(b"Lavf", b"\xe9\xe8\xe0\xff")),
        COUNT,
    ),
    "newline": (named("a\nb.mp4"), COUNT),
    "unicode": (named("\N{ROBOT FACE} r\u00e9sum\u00e9 \u05d0.mp4"), COUNT),
    "not_unicode": (named(os.fsdecode(b"\xff\xfe.mp4")), COUNT),
    "dash": (named("-i.mp4"), COUNT),
    "pattern": (named("%03d.mp4"), COUNT),
    "glob": (named("*[0-9]?.mp4"), COUNT),
    "quotes": (named("a 'b' \"c\" $(d) `e`.mp4"), COUNT),
    "protocol": (named("concat:a.mp4|b.mp4"), COUNT),
    "address": (named("http:x.mp4"), COUNT),
    "long": (named("n" * 251 + ".mp4"), COUNT),
    "link.mp4": (linked("target.mp4"), COUNT),
    "dangling.mp4": (linked("nothing.mp4"), r"cannot be read \(No such file or directory\)"),
    "loop.mp4": (linked("loop.mp4"), r"cannot be read \(Too many levels of symbolic links\)"),
    "endless.mp4": (linked("/dev/zero"), "not a regular file"),
    "pipe.mp4": (os.mkfifo, "not a regular file"),
    "socket.mp4": (listening, "not a regular file"),
    "folder.mp4": (Path.mkdir, "not a regular file"),
}


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(1, time_s=LIMIT_S) as pool:
        yield pool


def test_there_are_sixty_broken_or_odd_files() -> None:
    assert len(FILES) >= 60


@pytest.mark.parametrize("name", FILES)
def test_a_broken_or_odd_file_is_decoded_or_refused_with_a_reason(
    name: str, pool: DecodePool, tmp_path: Path
) -> None:
    write, expected = FILES[name]
    path = tmp_path / name
    written = write(path)
    path = written if isinstance(written, Path) else path
    try:
        info = pool.probe(path)
        pictures = pool.decode(path, range(info.num_frames))
    except UnreadableVideo as error:
        reason = str(error)
    else:
        reason = ""
    if reason:
        assert re.fullmatch(str(expected), reason)
        return
    assert len(pictures) == len(info.start_s) == info.num_frames
    found = [number_of(picture) for picture in pictures]
    if name.startswith("cut"):  # what is left is sound
        assert found == sorted(set(found))
    else:
        assert info.num_frames == expected
        assert name == "wide.mkv" or sorted(found) == list(range(expected))


def flipped(seed: int) -> tuple[str, bytes]:
    """Return a container's suffix, and a sound file with a few bytes changed."""
    generator = random.Random(seed)
    suffix, codec, muxer = generator.choice(
        [
            ("mp4", "libx264", {}),
            ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
            ("mp4", "libx265", {}),
            ("mp4", "mpeg4", {}),
            ("mp4", "libsvtav1", {}),
            ("webm", "libvpx-vp9", {}),
            ("mkv", "libx264", {}),
            ("mkv", "ffv1", {}),
            ("avi", "mpeg4", {}),
            ("avi", "libx264", {}),
        ]
    )
    content = bytearray(sound_bytes(suffix, codec, **muxer))
    # half of them in the tables at either end, where a byte decides most
    ends = [*range(min(2000, len(content))), *range(max(len(content) - 3000, 0), len(content))]
    for _ in range(generator.choice([1, 2, 5, 20, 100])):
        place = generator.choice(ends) if seed % 2 else generator.randrange(len(content))
        content[place] = generator.randrange(256)
    return suffix, bytes(content)


def read_flipped(folder: Path, seeds: range, workers: int) -> dict[str, int]:
    """Return how often each outcome came, of all frames of every file."""
    outcomes: dict[str, int] = {}
    with DecodePool(workers, memory_gb=1.0, time_s=LIMIT_S, result_gb=0.5) as pool:
        for seed in seeds:
            suffix, content = flipped(seed)
            path = folder / f"{seed}.{suffix}"
            path.write_bytes(content)
            try:
                info = pool.probe(path)
                pool.decode(path, range(min(info.num_frames, 50)))
                outcome = "decoded"
            except UnreadableVideo as error:
                outcome = str(error)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            path.unlink()
        sound = folder / "sound.mp4"
        sound.write_bytes(sound_bytes("mp4"))
        last = pool.decode(sound, range(COUNT))
        assert [number_of(picture) for picture in last] == list(range(COUNT))
    return outcomes


def test_flipped_bytes_do_not_crash_the_parent(tmp_path: Path) -> None:
    outcomes = read_flipped(tmp_path, range(FLIPPED_SAMPLED), 1)
    assert sum(outcomes.values()) == FLIPPED_SAMPLED
    assert outcomes.keys() & {"decoded"}
    assert len(outcomes) > 2


@pytest.mark.slow
def test_two_thousand_files_with_flipped_bytes_do_not_crash_the_parent(tmp_path: Path) -> None:
    outcomes = read_flipped(tmp_path, range(FLIPPED), 2)
    assert sum(outcomes.values()) == FLIPPED
    assert not [reason for reason in outcomes if "takes longer" in reason]
    for outcome, count in sorted(outcomes.items(), key=lambda item: -item[1]):
        print(count, outcome)  # noqa: T201
