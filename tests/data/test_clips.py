"""The clip plan: which frames, which split; against brute force and over random data sets."""

from collections import Counter, defaultdict
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from cosmos_hydra.data.clips import HELD_OUT, TRAIN, Clip, ClipPlanner
from cosmos_hydra.data.video import VideoInfo


def steady(num_frames: int, fps: float = 25.0) -> VideoInfo:
    # decoders give time stamps in single precision
    start_s = (np.arange(num_frames) / fps).astype(np.float32).astype(np.float64)
    return VideoInfo(num_frames, fps, 48, 64, start_s)


def variable(num_frames: int, generator: np.random.Generator) -> VideoInfo:
    """A video whose frames last 10 to 120 ms."""
    times_ms = np.cumsum([0, *(10 * generator.integers(1, 13, num_frames - 1))])
    return VideoInfo(num_frames, num_frames / (times_ms[-1] / 1000), 48, 64, times_ms / 1000)


def frames_by_split(clips: list[Clip]) -> dict[str, set[tuple[str, int]]]:
    frames: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for clip in clips:
        frames[clip.split] |= {(clip.video, index) for index in clip.frame_indices}
    return frames


def test_the_plan_is_a_function_of_the_seed() -> None:
    infos = {f"{number}.mp4": steady(300 + number) for number in range(7)}
    plans = [ClipPlanner(9, None, 5, 0.1, seed).plan(infos) for seed in (0, 0, 1)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]


def test_clips_of_a_video_do_not_depend_on_the_others() -> None:
    planner = ClipPlanner(9, None, 5, 0.1, 0)
    infos = {f"{number}.mp4": steady(300 + number) for number in range(20)}
    all_clips = planner.plan(infos)
    for dropped in ("3.mp4", "17.mp4"):
        rest = {name: info for name, info in infos.items() if name != dropped}
        fewer_clips = planner.plan(rest)
        kept = {(clip.video, clip.split): [] for clip in fewer_clips}
        for clip in fewer_clips:
            kept[clip.video, clip.split].append(clip)
        for (video, split), clips in kept.items():
            before = [clip for clip in all_clips if (clip.video, clip.split) == (video, split)]
            assert before in ([], clips)  # empty where a video changed its split
        changed = {clip.video for clip in all_clips} - {clip.video for clip in fewer_clips}
        assert changed == {dropped}


def test_videos_of_equal_length_are_cut_at_different_places() -> None:
    infos = {f"{number}.mp4": steady(200) for number in range(4)}
    clips = ClipPlanner(9, None, 5, 0.0, 0).plan(infos)
    starts = {tuple(clip.start_frame for clip in clips if clip.video == name) for name in infos}
    assert len(starts) == 4


def test_one_clip_starts_in_each_equal_part_of_a_video() -> None:
    for length in (14, 50, 333):
        for seed in range(20):
            infos = {"a.mp4": steady(length)}
            clips = ClipPlanner(9, None, 6, 0.0, seed).plan(infos)
            starts = [clip.start_frame for clip in clips]
            possible = length - 9 + 1
            assert len(starts) == 6
            for part, start in enumerate(starts):
                assert int(part * possible / 6) <= start < int((part + 1) * possible / 6)
            assert all(
                list(clip.frame_indices) == list(range(clip.start_frame, clip.start_frame + 9))
                for clip in clips
            )


def shared_frames(clips: list[Clip]) -> int:
    """Return how many frames the two clips of a video that share most have in common."""
    frames = [set(clip.frame_indices) for clip in clips]
    pairs = [(a, b) for a in range(len(frames)) for b in range(a)]
    return max((len(frames[a] & frames[b]) for a, b in pairs), default=0)


def most_clips(length: int, frames: int, most_shared: int) -> int:
    """Return how many clips fit when two may share so many frames: one after the other."""
    return 1 + (length - frames) // max(1, frames - most_shared)


@pytest.mark.parametrize("max_overlap", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_two_clips_of_a_video_share_no_more_than_they_may(max_overlap: float) -> None:
    most_shared = int(9 * max_overlap)
    for seed in range(100):
        length = int(np.random.default_rng(seed).integers(9, 120))
        planner = ClipPlanner(9, None, 6, 0.0, seed, max_overlap)
        clips = planner.plan({"a.mp4": steady(length)})
        assert shared_frames(clips) <= min(most_shared, 8)
        assert len(clips) == min(6, most_clips(length, 9, most_shared))
        assert max(clip.frame_indices[-1] for clip in clips) < length


def test_overlap_follows_the_time_stamps_of_a_variable_frame_rate() -> None:
    for seed in range(50):
        info = variable(150, np.random.default_rng(seed))
        clips = ClipPlanner(9, 12.0, 1000, 0.0, seed, 0.5).plan({"a.mp4": info})
        starts_s = info.start_s[[clip.start_frame for clip in clips]]
        assert len(clips) > 1
        assert (np.diff(starts_s) * 12.0 >= 4.4).all()
        # one more would not have fitted, a start being at most two frames of 120 ms late
        room_s = info.start_s[-1] - info.start_s[0] - 8 / 12.0
        assert len(clips) * (4.5 / 12.0 + 0.12) >= room_s - 0.12


def test_a_short_video_gives_every_start_once() -> None:
    clips = ClipPlanner(9, None, 6, 0.0, 0).plan({"a.mp4": steady(11), "b.mp4": steady(9)})
    starts = [(clip.video, clip.start_frame) for clip in clips]
    assert starts == [("a.mp4", 0), ("a.mp4", 1), ("a.mp4", 2), ("b.mp4", 0)]


@pytest.mark.parametrize("length", [8, 9])
def test_a_video_counts_only_if_a_clip_fits(length: int) -> None:
    assert ClipPlanner(9, None, 1, 0.1, 0).is_long_enough(steady(length)) == (length == 9)


def resample(info: VideoInfo, first: int, stop: int, frames: int, fps: float) -> dict[int, list]:
    """Return the frames shown at equal times, by start frame; times as exact fractions."""
    times = [Fraction(round(time * 10**6), 10**6) for time in info.start_s]
    tolerance = Fraction(2, 1000)
    last_end = times[-1] + Fraction(round(10**6 / info.fps), 10**6)
    end = times[stop] if stop < info.num_frames else last_end
    clips = {}
    for start in range(first, stop):
        shown = [times[start] + k / Fraction(fps).limit_denominator(1001) for k in range(frames)]
        if shown[-1] >= end - tolerance:
            continue
        clips[start] = [
            max(index for index in range(stop) if times[index] <= time + tolerance)
            for time in shown
        ]
    return clips


@pytest.mark.parametrize(
    ("source_fps", "fps"),
    [(50.0, 24.0), (30.0, 12.0), (25.0, 25.0), (3.0, 8.0), (30000 / 1001, 24000 / 1001)],
)
def test_resampling_takes_the_frame_that_is_shown_at_each_time(
    source_fps: float, fps: float
) -> None:
    info = steady(60, source_fps)
    expected = resample(info, 0, 60, 9, fps)
    assert expected
    clips = ClipPlanner(9, fps, 1000, 0.0, 0).plan({"a.mp4": info})
    assert {clip.start_frame: list(clip.frame_indices) for clip in clips} == expected
    assert {clip.fps for clip in clips} == {fps}


@pytest.mark.parametrize("seed", range(6))
def test_resampling_follows_the_time_stamps_of_a_variable_frame_rate(seed: int) -> None:
    info = variable(70, np.random.default_rng(seed))
    for fps in (7.0, 24.0):
        expected = resample(info, 0, 70, 9, fps)
        clips = ClipPlanner(9, fps, 1000, 0.0, 0).plan({"a.mp4": info})
        assert expected
        assert {clip.start_frame: list(clip.frame_indices) for clip in clips} == expected


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_the_same_rate_as_recorded_takes_every_frame_once(container: str) -> None:
    """After an hour single precision is off by 0.1 ms; Matroska has whole milliseconds."""
    info = steady(3600 * 30, 30.0)
    if container == "mkv":
        info = replace(info, start_s=info.start_s.round(3))
    clips = ClipPlanner(17, 30.0, 500, 0.0, 0).plan({"a.mp4": info})
    assert len(clips) == 500
    for clip in clips:
        assert list(clip.frame_indices) == list(range(clip.start_frame, clip.start_frame + 17))


def random_infos(generator: np.random.Generator, count: int) -> dict[str, VideoInfo]:
    infos = {}
    for number in range(count):
        length = int(generator.integers(9, 400))
        is_steady = generator.random() < 0.5
        info = steady(length, float(generator.choice([3.0, 12.0, 29.97, 50.0])))
        infos[f"{number}.mp4"] = info if is_steady else variable(length, generator)
    return infos


@pytest.mark.parametrize("seed", range(40))
def test_no_frame_is_shared_between_the_splits(seed: int) -> None:
    generator = np.random.default_rng(seed)
    fps = None if seed % 2 else float(generator.choice([4.0, 10.0, 24.0]))
    chunks = int(generator.integers(1, 9))
    planner = ClipPlanner(9, fps, chunks, 0.1, seed)
    infos = random_infos(generator, int(generator.integers(1, 40)))
    infos = {name: info for name, info in infos.items() if planner.is_long_enough(info)}
    clips = planner.plan(infos)
    frames = frames_by_split(clips)
    assert not frames[TRAIN] & frames[HELD_OUT]
    starts = [(clip.video, clip.start_frame) for clip in clips]
    assert len(set(starts)) == len(starts)
    assert {clip.video for clip in clips} == set(infos)
    for clip in clips:
        indices = np.array(clip.frame_indices)
        assert len(indices) == 9
        assert indices[0] == clip.start_frame
        assert indices[-1] < infos[clip.video].num_frames
        assert (np.diff(indices) >= (fps is None)).all()
    per_part = Counter((clip.video, clip.split) for clip in clips)
    assert max(per_part.values()) <= chunks
    assert frames[TRAIN]
