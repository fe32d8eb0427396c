"""Which clips are held out: whole episodes, or the end of each of few, in all their cameras."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from raw_videos import inventory_of, small_config, write_moving_video

from cosmos_hydra.data.clips import HELD_OUT, TRAIN, Clip, ClipPlanner, Span
from cosmos_hydra.data.video import VideoInfo


def steady(num_frames: int) -> VideoInfo:
    return VideoInfo(num_frames, 25.0, 48, 64, np.arange(num_frames) / 25.0)


def videos_of(clips: list[Clip], split: str) -> set[str]:
    return {clip.video for clip in clips if clip.split == split}


@pytest.mark.parametrize(
    ("num_videos", "expected"), [(5, 1), (6, 1), (14, 1), (16, 2), (20, 2), (101, 10)]
)
def test_of_five_videos_and_more_a_tenth_is_held_out_whole(num_videos: int, expected: int) -> None:
    infos = {f"{number}.mp4": steady(40) for number in range(num_videos)}
    clips = ClipPlanner(9, None, 3, 0.1, 0).plan(infos)
    held_out, train = videos_of(clips, HELD_OUT), videos_of(clips, TRAIN)
    assert len(held_out) == expected
    assert not held_out & train
    assert held_out | train == set(infos)


def test_some_video_is_always_left_to_train_on() -> None:
    infos = {f"{number}.mp4": steady(40) for number in range(6)}
    clips = ClipPlanner(9, None, 3, 0.99, 0).plan(infos)
    assert len(videos_of(clips, TRAIN)) == 1


def test_the_seed_chooses_who_is_held_out_and_a_new_video_moves_at_most_one() -> None:
    infos = {f"{number}.mp4": steady(40) for number in range(20)}
    chosen = [videos_of(ClipPlanner(9, None, 1, 0.1, s).plan(infos), HELD_OUT) for s in range(9)]
    assert len({frozenset(videos) for videos in chosen}) > 5
    for seed, before in enumerate(chosen):
        more = {**infos, "new.mp4": steady(40)}
        after = videos_of(ClipPlanner(9, None, 1, 0.1, seed).plan(more), HELD_OUT)
        assert len(before - after) <= 1


@pytest.mark.parametrize("num_videos", [1, 2, 4])
@pytest.mark.parametrize("length", [60, 100, 399])
def test_of_few_videos_the_last_15_percent_of_each_is_held_out(
    num_videos: int, length: int
) -> None:
    infos = {f"{number}.mp4": steady(length) for number in range(num_videos)}
    clips = ClipPlanner(9, None, 20, 0.1, 0).plan(infos)
    cut = length - round(0.15 * length)
    for name in infos:
        mine = [clip for clip in clips if clip.video == name]
        train = [clip for clip in mine if clip.split == TRAIN]
        held_out = [clip for clip in mine if clip.split == HELD_OUT]
        assert max(clip.frame_indices[-1] for clip in train) < cut
        assert min(clip.start_frame for clip in held_out) >= cut
        assert len(train) == 20
        # 15 % of the clips, as of the frames
        assert len(held_out) == min(3, length - cut - 9 + 1)


@pytest.mark.parametrize("length", range(18, 58))
def test_where_15_percent_is_shorter_than_a_clip_one_clip_is_held_out(length: int) -> None:
    clips = ClipPlanner(9, None, 5, 0.1, 0).plan({"a.mp4": steady(length)})
    held_out = [clip for clip in clips if clip.split == HELD_OUT]
    assert [clip.start_frame for clip in held_out] == [length - 9]
    trained = {index for clip in clips if clip.split == TRAIN for index in clip.frame_indices}
    assert max(trained) < length - 9


@pytest.mark.parametrize("length", [9, 13, 17])
def test_a_video_that_holds_no_two_separate_clips_is_all_for_training(length: int) -> None:
    clips = ClipPlanner(9, None, 5, 0.1, 0).plan({"a.mp4": steady(length)})
    assert {clip.split for clip in clips} == {TRAIN}


@pytest.mark.parametrize("num_videos", [2, 30])
def test_nothing_is_held_out_with_a_share_of_zero(num_videos: int) -> None:
    infos = {f"{number}.mp4": steady(80) for number in range(num_videos)}
    clips = ClipPlanner(9, None, 5, 0.0, 0).plan(infos)
    assert {clip.split for clip in clips} == {TRAIN}
    assert len(clips) == 5 * num_videos


def two_cameras(num_episodes: int) -> tuple[dict[str, VideoInfo], dict[str, Span]]:
    """Return episodes of 100 frames at 25 and at 10 fps, each camera's in one file."""
    infos, spans = {}, {}
    for camera, fps in (("fast", 25.0), ("slow", 10.0)):
        count = round(4 * fps)
        times_s = np.arange(num_episodes * count) / fps
        info = VideoInfo(len(times_s), fps, 48, 64, times_s)
        for episode in range(num_episodes):
            name = f"{camera}/{episode}"
            infos[name] = info
            spans[name] = Span(str(episode), episode * count, (episode + 1) * count)
    return infos, spans


@pytest.mark.parametrize("num_episodes", [5, 12, 30])
def test_cameras_of_one_episode_are_never_in_different_splits(num_episodes: int) -> None:
    infos, spans = two_cameras(num_episodes)
    for seed in range(10):
        clips = ClipPlanner(9, None, 3, 0.1, seed).plan(infos, spans)
        held_out, train = (
            {spans[video].episode for video in videos_of(clips, split)}
            for split in (HELD_OUT, TRAIN)
        )
        assert not held_out & train
        assert len(held_out) == max(1, round(num_episodes * 0.1))


@pytest.mark.parametrize("num_episodes", [1, 4])
def test_of_few_episodes_all_cameras_are_cut_at_the_same_time(num_episodes: int) -> None:
    infos, spans = two_cameras(num_episodes)
    clips = ClipPlanner(5, None, 50, 0.1, 0).plan(infos, spans)
    for episode in range(num_episodes):
        ends_s, starts_s = [], []
        for name in (f"fast/{episode}", f"slow/{episode}"):
            begin_s = infos[name].start_s[spans[name].first]
            for clip in (clip for clip in clips if clip.video == name):
                assert spans[name].first <= clip.frame_indices[0]
                assert clip.frame_indices[-1] < spans[name].stop
                since_s = infos[name].start_s[list(clip.frame_indices)] - begin_s
                if clip.split == TRAIN:
                    ends_s.append(since_s[-1])
                else:
                    starts_s.append(since_s[0])
        # 15 % of the fast camera are 0.6 s, of the slow one a clip of 0.5 s
        assert max(ends_s) < 3.4 <= min(starts_s) + 1e-9


def test_files_of_the_same_bytes_are_one_video(tmp_path: Path) -> None:
    for number in range(5):
        write_moving_video(tmp_path / "raw" / f"{number}.mp4", seed=number)
    shutil.copy(tmp_path / "raw/1.mp4", tmp_path / "raw/copy.mp4")
    inventory = inventory_of(small_config(tmp_path))
    assert inventory.skipped == {"copy.mp4": "same bytes as 1.mp4"}
    assert inventory.counts()["skipped"] == {"same bytes as another video": 1}
