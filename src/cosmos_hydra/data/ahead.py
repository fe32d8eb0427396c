"""Decode what is needed next while something else is being done.

Legend: F frames, H W height/width, C colours.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

import torch

from cosmos_hydra.data.clips import Clip
from cosmos_hydra.data.video import UnreadableVideo

# frames uint8 [F, H, W, 3], or why there are none
Decoded = tuple[Clip, torch.Tensor | UnreadableVideo]

In = TypeVar("In")
Out = TypeVar("Out")


def read_ahead(
    items: Iterable[In], read: Callable[[In], Out], executor: Executor, ahead: int
) -> Iterator[tuple[In, Out]]:
    """Yield items with what `read` makes of them, in order, `ahead` of them under way."""
    pending: deque[tuple[In, Future[Out]]] = deque()
    try:
        for item in items:
            pending.append((item, executor.submit(read, item)))
            if len(pending) > ahead:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    finally:
        for _, future in pending:
            future.cancel()


def decode_together(
    clips: Iterable[Clip],
    read: Callable[[str, list[int]], torch.Tensor | UnreadableVideo],
    most_frames: Callable[[str], int],
    executor: Executor,
    ahead: int,
) -> Iterator[Decoded]:
    """Yield clips with their frames, which neighbours that overlap share.

    `read` returns the frames of a video, and `most_frames` how many of them fit into memory; of
    such readings `ahead` are under way.
    """

    def read_group(group: list[Clip]) -> tuple[list[int], torch.Tensor | UnreadableVideo]:
        indices = sorted({index for clip in group for index in clip.frame_indices})
        return indices, read(group[0].video, indices)

    groups = _overlapping(clips, most_frames)
    for group, (indices, frames_FHWC) in read_ahead(groups, read_group, executor, ahead):
        for clip in group:
            if isinstance(frames_FHWC, UnreadableVideo):
                yield clip, frames_FHWC
                continue
            places = [bisect_left(indices, index) for index in clip.frame_indices]
            if places == list(range(places[0], places[0] + len(places))):
                yield clip, frames_FHWC[places[0] : places[0] + len(places)]  # no copy
            else:
                yield clip, frames_FHWC[places]


def _overlapping(clips: Iterable[Clip], most_frames: Callable[[str], int]) -> Iterator[list[Clip]]:
    """Yield neighbours of one video, each of which shares frames with those before it."""
    group: list[Clip] = []
    frames: set[int] = set()
    for clip in clips:
        wanted = frames.union(clip.frame_indices)
        is_one_of_them = (
            group
            and clip.video == group[0].video
            and not frames.isdisjoint(clip.frame_indices)
            and len(wanted) <= most_frames(clip.video)
        )
        if group and not is_one_of_them:
            yield group
            group, wanted = [], set(clip.frame_indices)
        group.append(clip)
        frames = wanted
    if group:
        yield group
