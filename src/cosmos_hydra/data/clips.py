"""Which frames become clips, and which clips are held out; seeded and independent per video."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cosmos_hydra.checks import SPATIAL_FACTOR, TEMPORAL_FACTOR
from cosmos_hydra.config import DataConfig
from cosmos_hydra.data.video import VideoInfo
from cosmos_hydra.seeds import numpy_generator, seed_of

TRAIN, HELD_OUT = "train", "held_out"
FEW_VIDEOS = 5  # below this no whole video is held out
HELD_OUT_TAIL = 0.15  # share of each of few videos that is held out
# Matroska rounds time stamps to 1 ms, decord's single precision to 0.5 ms after two hours
TIME_TOLERANCE_S = 2e-3
GAP_TOLERANCE = 0.1  # frames; time stamps are rounded


def latent_shape(data: DataConfig, channels: int) -> tuple[int, int, int, int]:
    """Return channels, frames, height and width of the latent of the configured clip."""
    frames = 1 + (data.frames - 1) // TEMPORAL_FACTOR
    return channels, frames, data.height // SPATIAL_FACTOR, data.width // SPATIAL_FACTOR


@dataclass(frozen=True)
class Clip:
    """Frames of one video that make one sample."""

    video: str
    split: str
    start_frame: int
    frame_indices: tuple[int, ...]
    fps: float
    # width over height of a pixel as it is to be shown
    pixel_aspect: float = 1.0


@dataclass(frozen=True)
class Region:
    """Frames [first, stop) of a video that belong to one split."""

    split: str
    first: int
    stop: int


class ClipPlanner:
    """Plan the clips of a data set from what its videos hold."""

    def __init__(
        self,
        frames: int,
        fps: float | None,
        chunks_per_video: int,
        held_out: float,
        seed: int,
        max_overlap: float = 1.0,
    ) -> None:
        self.frames, self.fps, self.chunks = frames, fps, chunks_per_video
        self.held_out, self.seed, self.max_overlap = held_out, seed, max_overlap

    def is_long_enough(self, info: VideoInfo) -> bool:
        """Return whether at least one clip fits."""
        return len(self._starts(info, 0, info.num_frames)) > 0

    def plan(self, infos: dict[str, VideoInfo]) -> list[Clip]:
        """Return the clips of all videos, ordered by video name and start frame."""
        regions = self._regions(infos)
        clips = []
        for name in sorted(infos):
            for region in regions[name]:
                clips.extend(self._choose(name, infos[name], region, len(regions[name]) > 1))
        return clips

    def _regions(self, infos: dict[str, VideoInfo]) -> dict[str, list[Region]]:
        whole = {name: [Region(TRAIN, 0, info.num_frames)] for name, info in infos.items()}
        if self.held_out == 0:
            return whole
        if len(infos) < FEW_VIDEOS:
            return {name: self._with_tail(info) for name, info in infos.items()}
        num_held_out = min(max(1, round(len(infos) * self.held_out)), len(infos) - 1)
        # by hash, so that a new video moves few others
        ranked = sorted(infos, key=lambda name: seed_of(self.seed, "held_out", name))
        for name in ranked[:num_held_out]:
            whole[name] = [Region(HELD_OUT, 0, infos[name].num_frames)]
        return whole

    def _with_tail(self, info: VideoInfo) -> list[Region]:
        last_start = int(self._starts(info, 0, info.num_frames)[-1])
        cut = min(info.num_frames - round(HELD_OUT_TAIL * info.num_frames), last_start)
        if len(self._starts(info, 0, cut)) == 0:
            return [Region(TRAIN, 0, info.num_frames)]
        return [Region(TRAIN, 0, cut), Region(HELD_OUT, cut, info.num_frames)]

    def _choose(self, name: str, info: VideoInfo, region: Region, is_part: bool) -> list[Clip]:
        count = self.chunks
        if is_part and region.split == HELD_OUT:
            count = max(1, round(self.chunks * HELD_OUT_TAIL))
        starts = self._starts(info, region.first, region.stop)
        generator = numpy_generator(self.seed, "clips", name, region.split)
        places = starts if self.fps is None else info.start_s[starts] * self.fps
        gap = self.frames * (1 - self.max_overlap) - GAP_TOLERANCE
        starts = starts[_spread(places, count, gap, generator)]
        return [
            Clip(
                name,
                region.split,
                int(start),
                tuple(self._frame_indices(info, int(start))),
                self.fps or info.fps,
                info.pixel_aspect,
            )
            for start in starts
        ]

    def _starts(self, info: VideoInfo, first: int, stop: int) -> np.ndarray:
        """Return every frame in [first, stop) at which a clip that ends before stop can begin."""
        if self.fps is None:
            return np.arange(first, max(first, stop - self.frames + 1))
        duration_s = (self.frames - 1) / self.fps
        # a frame is shown until the next one starts; the last one as long as the average
        shown_until_s = np.append(info.start_s[1:], info.start_s[-1] + 1 / info.fps)
        fits = info.start_s[first:stop] + duration_s < shown_until_s[stop - 1] - TIME_TOLERANCE_S
        return first + np.flatnonzero(fits)

    def _frame_indices(self, info: VideoInfo, start: int) -> Sequence[int]:
        if self.fps is None:
            return range(start, start + self.frames)
        times_s = info.start_s[start] + np.arange(self.frames) / self.fps + TIME_TOLERANCE_S
        return [int(i) for i in np.searchsorted(info.start_s, times_s, side="right") - 1]


def _spread(
    places: np.ndarray, count: int, gap: float, generator: np.random.Generator
) -> list[int]:
    """Return indices of at most `count` ascending places that lie `gap` apart, or as many as can.

    One is drawn from each of `count` equal parts, as far as the gap allows.
    """
    # the latest choice that leaves room for those after it
    latest: list[int] = []
    index = len(places) - 1
    while index >= 0 and len(latest) < count:
        latest.insert(0, index)
        before = int(np.searchsorted(places, places[index] - gap, side="right")) - 1
        index = min(index - 1, before)
    edges = np.linspace(0, len(places), len(latest) + 1).astype(int)
    chosen: list[int] = []
    first = 0
    for part, last in enumerate(latest):
        low = min(max(first, int(edges[part])), last)
        high = max(low, min(int(edges[part + 1]) - 1, last))
        chosen.append(int(generator.integers(low, high + 1)))
        after = int(np.searchsorted(places, places[chosen[-1]] + gap))
        first = max(chosen[-1] + 1, after)
    return chosen
