"""Figures of a source for people: sizes, rates, lengths, captions, and what settings would keep."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from cosmos_hydra.checks import TEMPORAL_FACTOR
from cosmos_hydra.config import Config, Fit
from cosmos_hydra.data.clips import TRAIN, ClipPlanner
from cosmos_hydra.data.inventory import Inventory

BINS, BAR = 8, 30
MOST_FREQUENT, NAMED = 3, 3
# beside data.frames: from a picture to the length that the model was trained with
LENGTHS = (1, 9, 17, 33, 49, 65, 81, 97, 121)


def lines_of(inventory: Inventory, config: Config) -> Iterator[str]:
    """Yield the lines of stage=inspect about everything but look-alikes."""
    episodes = {episode.episode for episode in inventory.episodes.values()}
    yield f"{len(inventory.episodes)} videos of {len(episodes)} episodes"
    for fate, reasons in (("skipped", inventory.skipped), ("failed", inventory.failed)):
        for reason, names in _grouped(reasons):
            yield f"{fate}: {reason}: {_named(names)}"
    yield from _histograms(inventory)
    yield from _captions(inventory)
    yield from _motion(inventory)
    yield from _lengths(inventory, config)
    yield from _fits(inventory, config)


def _grouped(reasons: dict[str, str]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def _named(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _histograms(inventory: Inventory) -> Iterator[str]:
    infos, spans = inventory.infos, inventory.spans
    yield from _counted("size", [f"{info.width}x{info.height}" for info in infos.values()])
    yield from _counted("fps", [f"{info.fps:.4g}" for info in infos.values()])
    frames = [span.stop - span.first for span in spans.values()]
    seconds = [count / infos[name].fps for count, name in zip(frames, spans, strict=True)]
    yield (
        f"length: {min(frames)} to {max(frames)} frames, half of them up to "
        f"{np.median(frames):.0f}; {min(seconds):.1f} to {max(seconds):.1f} s, "
        f"{sum(seconds) / 60:.1f} min in all"
    )
    yield from _bars(frames)


def _counted(title: str, values: list[str]) -> Iterator[str]:
    counts = Counter(values).most_common()
    shown = ", ".join(f"{value} ({count})" for value, count in counts[:BINS])
    yield f"{title}: {shown}" + (f" and {len(counts) - BINS} others" if len(counts) > BINS else "")


def _bars(values: list[int]) -> Iterator[str]:
    low, high = min(values), max(values)
    edges = np.unique(np.linspace(low, high + 1, BINS + 1).round().astype(int))
    counts, _ = np.histogram(values, edges)
    width = len(str(high))
    for first, stop, count in zip(edges, edges[1:], counts, strict=False):
        bar = "#" * -(-BAR * count // max(counts))
        yield f"  {first:{width}} to {stop - 1:{width}} frames  {f'{bar} {count}'.lstrip()}"


def _captions(inventory: Inventory) -> Iterator[str]:
    captions = Counter(episode.caption for episode in inventory.episodes.values())
    words = [len(caption.split()) for caption in captions.elements()]
    missing = sum(reason.startswith("no caption") for reason in inventory.skipped.values())
    yield (
        f"captions: {len(captions)} different, {min(words)} to {max(words)} words; "
        f"{missing} videos without"
    )
    for caption, count in captions.most_common(MOST_FREQUENT):
        yield f"  {count} x {caption}"


def _motion(inventory: Inventory) -> Iterator[str]:
    kinds = Counter(
        (kind, motion.names)
        for episode in inventory.episodes.values()
        for kind, motion in episode.motion.items()
    )
    for (kind, names), count in kinds.items():
        yield f"{kind}: {len(names)} dimensions ({', '.join(names)}) of {count} videos"


def _lengths(inventory: Inventory, config: Config) -> Iterator[str]:
    """Yield what each legal data.frames keeps at data.fps."""
    data, limit = config.data, 1 + (config.model.max_size[0] - 1) * TEMPORAL_FACTOR
    rate = f" at {data.fps:g} fps" if data.fps else ""
    yield f"data.frames{rate}, with data.chunks_per_video={data.chunks_per_video}:"
    yield "  frames  videos  clips  to train on  held out"
    longest = max(span.stop - span.first for span in inventory.spans.values())
    for frames in sorted({*LENGTHS, data.frames}):
        if frames > limit or (frames > longest and not data.fps and frames != data.frames):
            continue
        sizes = (frames, data.fps, data.chunks_per_video)
        planner = ClipPlanner(*sizes, data.held_out, data.seed, data.max_overlap)
        infos = {
            name: info
            for name, info in inventory.infos.items()
            if planner.is_long_enough(info, inventory.spans[name])
        }
        clips = planner.plan(infos, inventory.spans)
        train = sum(clip.split == TRAIN for clip in clips)
        chosen = "  <- data.frames" if frames == data.frames else ""
        row = f"  {frames:6}  {len(infos):6}  {len(clips):5}  {train:11}  {len(clips) - train:8}"
        yield row + chosen


def _fits(inventory: Inventory, config: Config) -> Iterator[str]:
    """Yield what each data.fit does to the pictures."""
    data = config.data
    names = list(inventory.infos)
    sizes = np.array([(info.height, info.width) for info in inventory.infos.values()])
    aspect = (sizes[:, 1] / sizes[:, 0]) / (data.width / data.height)
    lost = 1 - np.minimum(aspect, 1 / aspect)
    worst = f"{lost.max():.1%}, {names[int(lost.argmax())]}"
    yield f"data.fit at data.height={data.height} data.width={data.width}:"
    shares = {
        Fit.crop: "of the pixels are cut off",
        Fit.pad: "of a clip are borders",
        Fit.stretch: "is how much sides are squeezed",
    }
    for fit, words in shares.items():
        chosen = "  <- data.fit" if fit is data.fit else ""
        yield f"  {fit.name:7}  {lost.mean():.1%} {words} (at most {worst}){chosen}"
    larger = (sizes < (data.height, data.width)).any(1).sum()
    if larger:
        yield f"  {larger} videos are smaller than the clip and are enlarged"
