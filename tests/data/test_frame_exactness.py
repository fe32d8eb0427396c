"""Random reads of videos whose frames say their number: no codec or container leads astray."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from raw_videos import number_of, numbered_frames, write_video

from cosmos_hydra.data.clips import ClipPlanner
from cosmos_hydra.data.decode_pool import DecodePool, FramesRequest
from cosmos_hydra.data.video import probe

COUNT = 150
READS_SAMPLED, READS = 10, 400
X264_GROUPS = {"g": "20", "bf": "3", "x264-params": "scenecut=0:b-adapt=0"}
OPEN_GROUPS = {"g": "20", "bf": "3", "x264-params": "open-gop=1:scenecut=0:b-adapt=0:b-pyramid=2"}
TINY_OPEN = {"g": "3", "bf": "2", "x264-params": "open-gop=1:scenecut=0:b-adapt=0"}
X265_OPEN = {"x265-params": "log-level=none:keyint=20:open-gop=1:scenecut=0"}
SVT = {"preset": "9", "crf": "10"}  # coarser ones change a number
VP9 = {"g": "30", "deadline": "good", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "16"}


def times_ms() -> list[int]:
    steps_ms = np.random.default_rng(5).integers(8, 120, COUNT - 1)
    return [0, *np.cumsum(steps_ms).tolist()]


def encoded(codec: str, options: dict[str, str], **more: Any) -> Callable[[Path], list[int]]:
    def write(path: Path) -> list[int]:
        write_video(path, numbered_frames(COUNT), codec, options, **more)
        return list(range(COUNT))

    return write


def copy_packets(sources: list[Path], path: Path, shift_s: float, muxer: dict[str, str]) -> None:
    """Put the packets of several files one behind the other, the first frame at `shift_s`."""
    with av.open(str(path), "w", options=muxer) as out:
        stream, end_s = None, Fraction(shift_s)
        for source in sources:
            with av.open(str(source)) as container:
                template = container.streams.video[0]
                stream = stream or out.add_stream_from_template(template)
                packets = [packet for packet in container.demux(template) if packet.size]
                base, first = packets[0].time_base, min(packet.pts for packet in packets)
                step = Fraction(1, 25)
                for packet in packets:
                    offset = int(end_s / base) - first
                    packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                    packet.stream = stream
                last = max(packet.pts for packet in packets)
                for packet in packets:
                    out.mux(packet)
                end_s = last * base + step


def joined(options: dict[str, str]) -> Callable[[Path], list[int]]:
    """Two encodings in one file, as a recorder that starts anew leaves them."""

    def write(path: Path) -> list[int]:
        parts = [path.with_name(f"{path.name}-{part}.mp4") for part in "ab"]
        for part, start in zip(parts, (0, 70), strict=True):
            write_video(part, numbered_frames(COUNT)[start : start + 70], options=options)
        copy_packets(parts, path, 0.0, {})
        return list(range(140))

    return write


def shifted(shift_s: float, muxer: dict[str, str] | None = None) -> Callable[[Path], list[int]]:
    """All times moved: they begin late, or (cut by an edit list) before zero."""

    def write(path: Path) -> list[int]:
        plain = path.with_name(f"{path.name}-plain.mp4")
        write_video(plain, numbered_frames(COUNT), options=X264_GROUPS)
        copy_packets([plain], path, shift_s, muxer or {})
        before_zero = max(0, round(-shift_s * 25))
        return list(range(before_zero, COUNT))

    return write


def cut_behind_a_key_frame(path: Path) -> list[int]:
    """A copy that begins within an open group: its first frames lack what they refer to."""
    plain = path.with_name(f"{path.name}-plain.mp4")
    write_video(plain, numbered_frames(COUNT), options=OPEN_GROUPS)
    with av.open(str(plain)) as container, av.open(str(path), "w") as out:
        template = container.streams.video[0]
        stream = out.add_stream_from_template(template)
        packets = [packet for packet in container.demux(template) if packet.size]
        keys = [place for place, packet in enumerate(packets) if packet.is_keyframe]
        rank = {pts: number for number, pts in enumerate(sorted(p.pts for p in packets))}
        first = rank[packets[keys[2]].pts]
        for packet in packets[keys[2] :]:
            packet.stream = stream
            out.mux(packet)
    return list(range(first, COUNT))


def with_hidden_frames(path: Path) -> list[int]:
    """VP8 may keep a picture to refer to in a packet of its own, which is never shown."""
    plain = path.with_name(f"plain-{path.name}")
    write_video(plain, numbered_frames(COUNT), "libvpx", VP9)
    with av.open(str(plain)) as container, av.open(str(path), "w") as out:
        template = container.streams.video[0]
        stream = out.add_stream_from_template(template)
        for packet in container.demux(template):
            if packet.size == 0:
                continue
            if packet.is_keyframe:
                hidden = av.Packet(bytes([bytes(packet)[0] & ~16]) + bytes(packet)[1:])
                hidden.pts = hidden.dts = packet.pts - 1
                hidden.time_base, hidden.stream = packet.time_base, stream
                if packet.pts > 0:
                    out.mux(hidden)
            packet.stream = stream
            out.mux(packet)
    return list(range(COUNT))


FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
KINDS: dict[str, Callable[[Path], list[int]]] = {
    "h264_one_group.mp4": encoded("libx264", {"g": "999", "bf": "3"}),
    "h264_closed.mp4": encoded("libx264", X264_GROUPS),
    "h264_open.mp4": encoded("libx264", OPEN_GROUPS),
    "h264_open.mkv": encoded("libx264", OPEN_GROUPS),
    "h264_tiny_groups.mp4": encoded("libx264", {"g": "2", "bf": "1", "x264-params": "b-adapt=0"}),
    "h264_tiny_open.mp4": encoded("libx264", TINY_OPEN, muxer={"use_editlist": "0"}),
    "h264_refreshed.mp4": encoded("libx264", {"x264-params": "intra-refresh=1:keyint=20"}),
    "h264_fragments.mp4": encoded("libx264", X264_GROUPS, muxer=FRAGMENTS),
    "h264_without_edits.mp4": encoded("libx264", X264_GROUPS, muxer={"use_editlist": "0"}),
    "h264_negative_dts.mp4": encoded(
        "libx264", X264_GROUPS, muxer={"movflags": "negative_cts_offsets"}
    ),
    "h264_variable.mp4": encoded("libx264", OPEN_GROUPS, times_ms=times_ms()),
    "h264_variable.mkv": encoded("libx264", X264_GROUPS, times_ms=times_ms()),
    "h264_joined.mp4": joined(X264_GROUPS),
    "h264_joined_open.mkv": joined(OPEN_GROUPS),
    "h264_late.mp4": shifted(7.0),
    "h264_late.mkv": shifted(7.0),
    "h264_edited.mp4": shifted(-1.0, {"avoid_negative_ts": "disabled"}),
    "h264_cut.mkv": cut_behind_a_key_frame,
    "h264.avi": encoded("libx264", {"g": "20"}),
    "hevc_open.mp4": encoded("libx265", X265_OPEN),
    "hevc_open.mkv": encoded("libx265", X265_OPEN),
    "av1.mp4": encoded("libsvtav1", SVT | {"g": "40"}),
    "av1_pairs.mp4": encoded("libsvtav1", SVT | {"g": "2"}),
    "av1_variable.webm": encoded("libsvtav1", SVT | {"g": "40"}, times_ms=times_ms()),
    "vp9.webm": encoded("libvpx-vp9", VP9),
    "vp9_live.webm": encoded("libvpx-vp9", VP9, muxer={"live": "1"}),
    "vp8_hidden.webm": with_hidden_frames,
    "vp8.webm": encoded("libvpx", VP9),
    "mpeg4.avi": encoded("mpeg4", {"g": "20"}),
    "mpeg4_with_b.mp4": encoded("mpeg4", {"g": "20", "bf": "2"}),
}


@pytest.fixture(scope="module")
def pool() -> Any:
    with DecodePool(1) as pool:
        yield pool


def wrong_reads(pool: DecodePool, path: Path, shown: list[int], reads: int) -> list[Any]:
    """Return the reads that gave other frames: single ones, and of short clips."""
    assert pool.probe(path).num_frames == len(shown)
    generator = np.random.default_rng(11)
    requests = [
        FramesRequest(path, (int(index),)) for index in generator.integers(0, len(shown), reads)
    ]
    # back from the end to where no key frame lies before
    requests += [FramesRequest(path, (i,)) for k in range(4) for i in (len(shown) - 1, k)]
    starts = generator.integers(0, len(shown) - 9, reads // 10)
    requests += [FramesRequest(path, tuple(range(start, start + 9))) for start in starts]
    wrong = []
    for request, frames in pool.read_ahead(requests):
        if isinstance(frames, Exception):
            wrong.append((request.frame_indices, str(frames)))
            continue
        found = [number_of(picture) for picture in frames]
        if found != [shown[index] for index in request.frame_indices]:
            wrong.append((request.frame_indices, found))
    return wrong


@pytest.mark.parametrize("name", KINDS)
def test_random_reads_give_the_frames_asked_for(
    name: str, pool: DecodePool, tmp_path: Path
) -> None:
    path = tmp_path / name
    assert wrong_reads(pool, path, KINDS[name](path), READS_SAMPLED) == []


@pytest.mark.slow
def test_ten_thousand_random_reads_give_the_frames_asked_for(
    pool: DecodePool, tmp_path: Path
) -> None:
    assert len(KINDS) * READS > 10_000
    for name, write in KINDS.items():
        path = tmp_path / name
        assert wrong_reads(pool, path, write(path), READS) == [], name


def test_times_begin_where_the_file_says(tmp_path: Path) -> None:
    for name in ("h264_late.mp4", "h264_late.mkv"):
        path = tmp_path / name
        KINDS[name](path)
        np.testing.assert_allclose(probe(path).start_s, 7 + np.arange(COUNT) / 25, atol=1e-3)


@pytest.mark.parametrize("fps", [5.0, 12.5, 40.0])
def test_clips_of_a_variable_rate_hold_the_frame_shown_at_each_time(
    fps: float, pool: DecodePool, tmp_path: Path
) -> None:
    path = tmp_path / "variable.mp4"
    KINDS["h264_variable.mp4"](path)
    planner = ClipPlanner(frames=9, fps=fps, chunks_per_video=6, held_out=0.0, seed=3)
    clips = planner.plan({"variable": pool.probe(path)})
    assert len(clips) == 6
    starts_ms = [*times_ms(), np.inf]
    for clip in clips:
        frames = pool.decode(path, clip.frame_indices)
        for place, picture in enumerate(frames):
            time_ms = starts_ms[clip.start_frame] + 1000 * place / fps
            number = number_of(picture)
            assert starts_ms[number] <= time_ms + 2 < starts_ms[number + 1] + 2
    assert len({tuple(np.diff(clip.frame_indices)) for clip in clips}) > 1
