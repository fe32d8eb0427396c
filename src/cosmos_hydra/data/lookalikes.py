"""Videos that show the same, and those of them that are trained on and held out at once.

A picture's fingerprint is its brightness on a 16 x 16 grid, without mean and contrast: encoding
again, scaling, lighter or darker make little difference. Robots are filmed by fixed cameras, so
that all episodes of a scene look alike; two videos count as the same when they differ far less from
each other than each does from itself a moment later. Copies that are trimmed, cropped or mirrored
are not found.
Legend: V videos, F pictures of a video, D numbers of a fingerprint.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from cosmos_hydra import files
from cosmos_hydra.config import DataConfig
from cosmos_hydra.data.inventory import Inventory, planner_of
from cosmos_hydra.data.video import UnreadableVideo, decode
from cosmos_hydra.logs import progress

PICTURES, GRID = 8, 16
MAX_VIDEOS = 4000  # pairs grow with the square
# tried on Bridge and rendered videos: copies 0.02 to 0.09 of the movement and 0.025 at most, other
# episodes of the same scene and motion 0.19 and 0.07 at least
SAME_MOVEMENT, SAME = 0.12, 0.03
EQUAL = 5e-3  # what rounding makes of no distance at all
SHOWN = 20
VIDEOS_AT_ONCE = 64


@dataclass(frozen=True)
class Pair:
    """Two videos of different episodes that look the same; distance 0 = no difference."""

    one: str
    other: str
    distance: float


def find_pairs(inventory: Inventory) -> list[Pair]:
    """Return the pairs of videos that look the same, the closest first; decodes 8 pictures each."""
    names = list(inventory.episodes)
    if len(names) > MAX_VIDEOS:
        places = np.linspace(0, len(names) - 1, MAX_VIDEOS).astype(int)
        names = [names[place] for place in places]
    prints = {}
    with progress("compare", len(names), "videos") as bar:
        for name in names:
            span = inventory.spans[name]
            frames = np.linspace(span.first, span.stop - 1, PICTURES).round().astype(int)
            try:
                frames_FHWC = decode(inventory.episodes[name].video, frames.tolist())
            except UnreadableVideo as error:
                inventory.failed[name] = str(error)
            else:
                prints[name] = fingerprint(frames_FHWC)
            bar.advance()
    if len(prints) < 2:
        return []
    episodes = {name: episode.episode for name, episode in inventory.episodes.items()}
    close = _close(list(prints), torch.stack(list(prints.values())))
    pairs = [pair for pair in close if episodes[pair.one] != episodes[pair.other]]
    return sorted(pairs, key=lambda pair: (pair.distance, pair.one, pair.other))


def fingerprint(frames_FHWC: torch.Tensor) -> torch.Tensor:
    """Return float32 [F, D] of uint8 pictures, mean 0 and deviation 1 a picture."""
    grey_FHW = frames_FHWC.float().mean(-1)
    grid_FHW = torch.nn.functional.interpolate(grey_FHW[:, None], size=(GRID, GRID), mode="area")
    grid_FD = grid_FHW.flatten(1)
    grid_FD = grid_FD - grid_FD.mean(1, keepdim=True)
    # a blank picture has no contrast
    return grid_FD / grid_FD.std(1, keepdim=True).clamp_min(1.0)


def _close(names: list[str], prints_VFD: torch.Tensor) -> Iterator[Pair]:
    count, pictures, _ = prints_VFD.shape
    moved_V = _distance(prints_VFD[:, 1:], prints_VFD[:, :-1]).median(1).values
    limit_V = (SAME_MOVEMENT * moved_V).clamp_min(SAME)
    for first in range(0, count, VIDEOS_AT_ONCE):
        some_VFD = prints_VFD[first : first + VIDEOS_AT_ONCE]
        flat = torch.cdist(some_VFD.flatten(0, 1), prints_VFD.flatten(0, 1))
        all_VFVF = flat.view(len(some_VFD), pictures, count, pictures) / GRID
        # every picture of each has to have one in the other
        there = all_VFVF.amin(3).mean(1)
        back = all_VFVF.amin(1).mean(2)
        far_VV = torch.maximum(there, back)
        limit_VV = torch.minimum(limit_V[first : first + len(some_VFD), None], limit_V[None])
        for one, other in (far_VV < limit_VV).nonzero().tolist():
            if first + one < other:
                distance = float(far_VV[one, other])
                yield Pair(names[first + one], names[other], distance)


def _distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one - other).square().mean(-1).sqrt()


def lines_of(inventory: Inventory, data: DataConfig) -> Iterator[str]:
    """Yield the lines of stage=inspect about look-alikes, leaks between the splits first."""
    if len(inventory.episodes) > MAX_VIDEOS:
        videos = len(inventory.episodes)
        yield f"look-alikes: of {videos} videos {MAX_VIDEOS}, evenly spread, are compared"
    pairs = find_pairs(inventory)
    if not pairs:
        yield "look-alikes: none"
        return
    # stage=preprocess leaves the later one out
    same = [pair for pair in pairs if pair.distance < EQUAL and _have_same_bytes(inventory, pair)]
    splits = _splits(inventory, data, {pair.other for pair in same})
    alike = [pair for pair in pairs if pair.one in splits and pair.other in splits]
    leaks = [pair for pair in alike if splits[pair.one] != splits[pair.other]]
    within = [pair for pair in alike if splits[pair.one] == splits[pair.other]]
    titles = {
        "trained on and held out at once": leaks,
        "in one split": within,
        "of the same bytes, of which the first is taken": same,
    }
    for title, some in titles.items():
        if some:
            yield f"look-alikes {title}: {len(some)} pairs"
            yield from (f"  {p.one} = {p.other}, distance {p.distance:.3f}" for p in some[:SHOWN])
            if len(some) > SHOWN:
                yield f"  and {len(some) - SHOWN} more"
    if leaks:
        yield "remove one of each pair, or the validation loss is of what was trained on"


def _have_same_bytes(inventory: Inventory, pair: Pair) -> bool:
    spans = [inventory.spans[name] for name in (pair.one, pair.other)]
    paths = [inventory.episodes[name].video for name in (pair.one, pair.other)]
    is_same_part = len({(span.first, span.stop) for span in spans}) == 1
    return is_same_part and len({files.sha256_of(path) for path in paths}) == 1


def _splits(inventory: Inventory, data: DataConfig, left_out: set[str]) -> dict[str, set[str]]:
    """Return the splits of each video that stage=preprocess would take."""
    planner = planner_of(data)
    infos = {
        name: info
        for name, info in inventory.infos.items()
        if name not in left_out and planner.is_long_enough(info, inventory.spans[name])
    }
    regions = planner.regions(infos, inventory.spans)
    return {name: {region.split for region in some} for name, some in regions.items()}
