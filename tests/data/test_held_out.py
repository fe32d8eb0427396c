"""Which clips are held out: whole videos, or the end of each of few videos."""

import numpy as np
import pytest

from cosmos_hydra.data.clips import HELD_OUT, TRAIN, Clip, ClipPlanner
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
