"""Which frames become clips, and which are held out; seeded and independent per video.

What is held out is an episode, with every camera that filmed it: two views of one scene are nearly
the same to a model.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cosmos_hydra.checks import SPATIAL_FACTOR, TEMPORAL_FACTOR
from cosmos_hydra.config import DataConfig
from cosmos_hydra.data.video import VideoInfo
from cosmos_hydra.seeds import numpy_generator, seed_of

TRAIN, HELD_OUT = "train", "held_out"
FEW_EPISODES = 5  # below this no whole episode is held out
HELD_OUT_TAIL = 0.15  # share of each of few episodes that is held out
# Matroska rounds time stamps to 1 ms
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
class Span:
    """Frames [first, stop) of a file: what one camera saw of an episode."""

    episode: str
    first: int
    stop: int


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

    def is_long_enough(self, info: VideoInfo, span: Span | None = None) -> bool:
        """Return whether at least one clip fits."""
        first, stop = (span.first, span.stop) if span else (0, info.num_frames)
        return len(self._starts(info, first, stop)) > 0

    def plan(
        self, infos: Mapping[str, VideoInfo], spans: Mapping[str, Span] | None = None
    ) -> list[Clip]:
        """Return the clips of all videos, ordered by video name and start frame.

        Frames are numbered as in the file. A video without a span is an episode by itself.
        """
        regions = self.regions(infos, spans or {})
        clips = []
        for name in sorted(infos):
            for region in regions[name]:
                clips.extend(self._choose(name, infos[name], region, len(regions[name]) > 1))
        return clips

    def regions(
        self, infos: Mapping[str, VideoInfo], spans: Mapping[str, Span]
    ) -> dict[str, list[Region]]:
        """Return which frames of each video are trained on and which are held out."""
        spans = {name: spans.get(name, Span(name, 0, infos[name].num_frames)) for name in infos}
        whole = {name: [Region(TRAIN, span.first, span.stop)] for name, span in spans.items()}
        if self.held_out == 0:
            return whole
        cameras = defaultdict(list)
        for name in sorted(spans):
            cameras[spans[name].episode].append(name)
        if len(cameras) < FEW_EPISODES:
            for names in cameras.values():
                whole |= self._with_tail({name: (infos[name], spans[name]) for name in names})
            return whole
        num_held_out = min(max(1, round(len(cameras) * self.held_out)), len(cameras) - 1)
        # by hash, so that a new episode moves few others
        ranked = sorted(cameras, key=lambda episode: seed_of(self.seed, "held_out", episode))
        for episode in ranked[:num_held_out]:
            for name in cameras[episode]:
                whole[name] = [Region(HELD_OUT, spans[name].first, spans[name].stop)]
        return whole

    def _with_tail(self, cameras: dict[str, tuple[VideoInfo, Span]]) -> dict[str, list[Region]]:
        """Return the regions of one episode's videos, cut at the same time in every camera."""
        cut_s = min(self._cut_s(info, span) for info, span in cameras.values())
        regions = {}
        for name, (info, span) in cameras.items():
            since_s = info.start_s[span.first : span.stop] - info.start_s[span.first]
            cut = span.first + int(np.searchsorted(since_s, cut_s - TIME_TOLERANCE_S))
            if len(self._starts(info, span.first, cut)) == 0:
                return {
                    name: [Region(TRAIN, span.first, span.stop)]
                    for name, (_, span) in cameras.items()
                }
            regions[name] = [Region(TRAIN, span.first, cut), Region(HELD_OUT, cut, span.stop)]
        return regions

    def _cut_s(self, info: VideoInfo, span: Span) -> float:
        """Return when a video's tail begins, seconds after the episode's first frame."""
        last_start = int(self._starts(info, span.first, span.stop)[-1])
        cut = min(span.stop - round(HELD_OUT_TAIL * (span.stop - span.first)), last_start)
        return float(info.start_s[cut] - info.start_s[span.first])

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
