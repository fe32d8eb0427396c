"""Which frames of a file belong to an episode, by presentation time, and which row each has.

A source says when an episode begins and ends, or when its rows were taken; frames are found by
their own time stamps, never by counting, since many episodes may lie in one file.
"""

import numpy as np

from cosmos_hydra.data.clips import Span
from cosmos_hydra.data.sources.episodes import Episode, Motion
from cosmos_hydra.data.video import UnreadableVideo, VideoInfo

NO_ROW = -1
ROW_TOLERANCE = 0.25  # how far a frame may be from its row, in intervals between rows


def span_of(episode: Episode, info: VideoInfo) -> Span:
    """Return the frames of an episode, which are all of the file unless the source says less.

    Raises: UnreadableVideo when the frames and the rows are not of the same time.
    """
    first, stop = 0, info.num_frames
    if episode.segment_s:
        # rounded sums of durations: a border lies anywhere within half a frame
        borders_s = np.asarray(episode.segment_s) - 0.5 / info.fps
        first, stop = (int(index) for index in np.searchsorted(info.start_s, borders_s))
        if first >= stop:
            begin_s, end_s = episode.segment_s
            raise UnreadableVideo(f"no frame from {begin_s:g} s to {end_s:g} s, its episode's part")
    for name, motion in episode.motion.items():
        if motion.time_s is None:
            _check_count(name, motion, stop - first)
        elif len(motion.time_s):
            first, stop = _within(motion.time_s + _begin_s(episode), info, first, stop)
    return Span(episode.episode, first, stop)


def row_numbers(motion: Motion, episode: Episode, info: VideoInfo, span: Span) -> np.ndarray:
    """Return which row belongs to each frame of a span, NO_ROW where none does."""
    if motion.time_s is None:
        rows = np.arange(span.stop - span.first)
        return np.where(rows < len(motion.values), rows, NO_ROW)
    frames_s = info.start_s[span.first : span.stop] - _begin_s(episode)
    tolerance_s = ROW_TOLERANCE * _interval_s(motion.time_s, info)
    return np.searchsorted(motion.time_s, frames_s + tolerance_s, side="right") - 1


def _begin_s(episode: Episode) -> float:
    return episode.segment_s[0] if episode.segment_s else 0.0


def _interval_s(times_s: np.ndarray, info: VideoInfo) -> float:
    return float(np.median(np.diff(times_s))) if len(times_s) > 1 else 1 / info.fps


def _check_count(name: str, motion: Motion, num_frames: int) -> None:
    # an action leads from a frame to the next one, so that the last frame may have none
    if len(motion.values) not in (num_frames - 1, num_frames):
        raise UnreadableVideo(f"{name} has {len(motion.values)} rows for {num_frames} frames")


def _within(rows_s: np.ndarray, info: VideoInfo, first: int, stop: int) -> tuple[int, int]:
    """Return the frames from the first row's to the last row's. Each row has to have its frame."""
    frames_s = info.start_s[first:stop]
    after = (
        np.clip(np.searchsorted(frames_s, rows_s), 1, len(frames_s) - 1) if stop - first > 1 else 0
    )
    before = np.maximum(np.asarray(after) - 1, 0)
    is_before = np.abs(frames_s[before] - rows_s) <= np.abs(frames_s[after] - rows_s)
    nearest = np.where(is_before, before, after)
    off_s = np.abs(frames_s[nearest] - rows_s)
    interval_s = _interval_s(rows_s, info)
    begin_s = rows_s[0]
    if rows_s[-1] - frames_s[-1] > interval_s / 2:
        raise UnreadableVideo(
            f"video ends at {frames_s[-1] - begin_s:.2f} s, its episode at "
            f"{rows_s[-1] - begin_s:.2f} s"
        )
    if off_s.max() > ROW_TOLERANCE * interval_s:
        row = int(np.argmax(off_s > ROW_TOLERANCE * interval_s))
        raise UnreadableVideo(
            f"row {row} is at {rows_s[row] - begin_s:.3f} s, the nearest frame at "
            f"{frames_s[nearest[row]] - begin_s:.3f} s: the fps of data or video is wrong"
        )
    return first + int(nearest[0]), first + int(nearest[-1]) + 1
