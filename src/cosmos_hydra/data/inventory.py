"""What a preprocessing run will do: which videos count, which clips are cut, under which settings.

Invariant, printed and stored: found = kept + skipped(reason) + failed(reason), in videos.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from cosmos_hydra import config as schema
from cosmos_hydra.config import Config, TextEncoderKind, TokenizerKind
from cosmos_hydra.data.clips import HELD_OUT, TRAIN, Clip, ClipPlanner, Region, Span
from cosmos_hydra.data.motion import motion_of, rows_within, statistics
from cosmos_hydra.data.sources import Episode, Found
from cosmos_hydra.data.spans import span_of
from cosmos_hydra.data.video import UnreadableVideo, VideoInfo, probe
from cosmos_hydra.errors import StageError
from cosmos_hydra.logs import progress
from cosmos_hydra.models.identity import (
    TEXT_ENCODER,
    TOKENIZER,
    folder_identity,
    weights_folder,
)

# what `identity` has of a video
IDENTITY = ("sha256", "caption", "episode", "first_frame", "num_frames", "motion_sha256")
# where videos and samples lie does not change what the samples are
PLACES = ("name", "source", "path", "captions")
SAME_AS = "same bytes as"


@dataclass
class Inventory:
    """Videos by fate, and the clips of those kept.

    `infos` and `hashes` are of whole files, `spans` what of them belongs to the video.
    """

    episodes: dict[str, Episode]
    infos: dict[str, VideoInfo]
    hashes: dict[str, str]
    clips: list[Clip]
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)
    regions: dict[str, list[Region]] = field(default_factory=dict)

    def drop(self, name: str, reason: str) -> None:
        """Count a video as failed and forget its clips."""
        self.failed[name] = reason
        del self.episodes[name]
        self.clips = [clip for clip in self.clips if clip.video != name]

    def skip(self, name: str, reason: str) -> None:
        """Count a video as skipped."""
        self.skipped[name] = reason
        del self.episodes[name], self.infos[name], self.spans[name]

    def motion(self, clip: Clip) -> dict[str, torch.Tensor]:
        """Return action and state of a clip's frames, float32 [F, D], as far as known."""
        name = clip.video
        return motion_of(
            self.episodes[name], self.infos[name], self.spans[name], clip.frame_indices
        )

    def identity(self, name: str) -> dict[str, Any]:
        """Return what, beside the settings, decides what a video's samples hold, JSON-ready."""
        episode, span = self.episodes[name], self.spans[name]
        return {
            "sha256": self.hashes[name],
            "caption": episode.caption,
            "episode": episode.episode,
            "first_frame": span.first,
            "num_frames": span.stop - span.first,
            "motion_sha256": {kind: motion.sha256 for kind, motion in episode.motion.items()},
        }

    def motion_statistics(self) -> dict[str, Any]:
        """Return names and statistics of action and state over what is trained on, JSON-ready."""
        columns = {
            key: motion.names
            for episode in self.episodes.values()
            for key, motion in episode.motion.items()
        }
        return statistics(columns, self._training_rows())

    def _training_rows(self) -> Iterator[dict[str, np.ndarray]]:
        seen = set()
        for name, episode in self.episodes.items():
            if episode.episode in seen:
                continue  # another camera, the same rows
            seen.add(episode.episode)
            for region in self.regions[name]:
                if region.split == TRAIN:
                    whole = (episode, self.infos[name], self.spans[name])
                    yield rows_within(*whole, region.first, region.stop)

    def counts(self) -> dict[str, Any]:
        """Return the numbers of videos by fate, with reasons."""
        kept, skipped, failed = len(self.episodes), len(self.skipped), len(self.failed)
        return {
            "found": kept + skipped + failed,
            "kept": kept,
            "skipped": dict(Counter(map(_kind, self.skipped.values()))),
            "failed": dict(Counter(self.failed.values())),
        }

    def summary(self) -> str:
        """Return the counts as one line."""
        counts = self.counts()
        parts = [f"kept {counts['kept']}"]
        for fate in ("skipped", "failed"):
            reasons = "; ".join(f"{number} x {reason}" for reason, number in counts[fate].items())
            parts.append(f"{fate} {sum(counts[fate].values())}" + (f" ({reasons})" * bool(reasons)))
        return f"found {counts['found']} videos = {' + '.join(parts)}"

    def describe(self) -> dict[str, Any]:
        """Return what goes into the manifest about videos, JSON-ready."""
        return {
            "counts": self.counts(),
            "skipped": self.skipped,
            "failed": self.failed,
            "motion": self.motion_statistics(),
            "videos": {
                name: {
                    **self.identity(name),
                    "task": episode.task,
                    "fps": self.infos[name].fps,
                    "height": self.infos[name].height,
                    "width": self.infos[name].width,
                    "caption_from": episode.caption_from,
                }
                for name, episode in self.episodes.items()
            },
        }


def take_inventory(config: Config, found: Found, hashes: dict[str, str]) -> Inventory:
    """Return what a source offers, having looked at every video; `hashes` has their sha256.

    Raises: StageError when no video is left.
    """
    data = config.data
    inventory, planner = look(found), planner_of(data)
    same: dict[tuple[str, int, int], str] = {}
    for name in list(inventory.episodes):
        span = inventory.spans[name]
        if not planner.is_long_enough(inventory.infos[name], span):
            inventory.skip(name, _too_short(data))
            continue
        first = same.setdefault((hashes[name], span.first, span.stop), name)
        if first == name:
            inventory.hashes[name] = hashes[name]
        else:  # one might be trained on and the other held out
            inventory.skip(name, f"{SAME_AS} {first}")
    if not inventory.episodes:
        raise StageError(
            f"data.source={data.source} gives no sample: {inventory.summary()}; "
            f"see the reasons, or lower data.frames"
        )
    inventory.regions = planner.regions(inventory.infos, inventory.spans)
    inventory.clips = planner.plan(inventory.infos, inventory.spans)
    return inventory


def look(found: Found) -> Inventory:
    """Return every video that can be read, however short, without hashes or clips."""
    inventory = Inventory({}, {}, {}, [], dict(found.skipped), dict(found.failed))
    # the parts of one file follow each other
    probe_once = lru_cache(maxsize=8)(probe)
    with progress("look", len(found.episodes), "videos") as bar:
        for episode in found.episodes:
            name = episode.name
            try:
                info = probe_once(episode.video)
                inventory.spans[name] = span_of(episode, info)
            except UnreadableVideo as error:
                inventory.failed[name] = str(error)
            else:
                inventory.episodes[name], inventory.infos[name] = episode, info
            bar.advance()
    return inventory


def planner_of(data: schema.DataConfig) -> ClipPlanner:
    """Return what plans the configured clips."""
    return ClipPlanner(
        data.frames, data.fps, data.chunks_per_video, data.held_out, data.seed, data.max_overlap
    )


def _kind(reason: str) -> str:
    return f"{SAME_AS} another video" if reason.startswith(SAME_AS) else reason


def _too_short(data: schema.DataConfig) -> str:
    at = f" at {data.fps:g} fps" if data.fps else ""
    return f"shorter than the clip of data.frames={data.frames}{at}"


def messages(config: Config, inventory: Inventory) -> list[str]:
    """Return what a user should know about the plan: counts, shortfalls, repeated frames."""
    data, clips = config.data, inventory.clips
    held_out = sum(clip.split == HELD_OUT for clip in clips)
    lines = [
        inventory.summary(),
        _clip_counts(data, len(clips), held_out),
    ]
    captions = Counter(episode.caption_from for episode in inventory.episodes.values())
    lines.append("captions from " + ", ".join(f"{k} ({n})" for k, n in captions.items()))
    asked = len(inventory.episodes) * data.chunks_per_video
    made_per_video = Counter(clip.video for clip in clips)
    short = [name for name, made in made_per_video.items() if made < data.chunks_per_video]
    if short:
        lines.append(
            f"data.chunks_per_video={data.chunks_per_video} asks for {asked} clips, {len(clips)} "
            f"were made: {len(short)} videos {_limit(data)}"
        )
    if data.held_out and not held_out:
        lines.append("nothing is held out: the videos are too short to share without overlap")
    if data.fps:
        slower = sum(info.fps < data.fps for info in inventory.infos.values())
        if slower:
            lines.append(f"data.fps={data.fps:g} repeats frames of {slower} slower videos")
    return lines


def _limit(data: schema.DataConfig) -> str:
    if data.max_overlap == 1:
        return "have too few start frames for more"
    return (
        f"are too short for more that share at most {data.max_overlap:.0%} of their frames "
        f"(data.max_overlap={data.max_overlap:g}; 1 allows every start frame)"
    )


def _clip_counts(data: schema.DataConfig, clips: int, held_out: int) -> str:
    clip = f"{data.frames} frames at {data.height}x{data.width}"
    return f"{clips} clips of {clip}: {clips - held_out} to train on, {held_out} held out"


def settings(config: Config) -> dict[str, Any]:
    """Return every setting that decides what the samples hold, JSON-ready.

    Raises: ConfigError when a folder of encoder weights lacks its files.
    """
    data = {k: v for k, v in schema.to_dict(config.data).items() if k not in PLACES}
    model = config.model
    tokenizer: dict[str, Any] = {"kind": model.tokenizer.kind.name}
    if model.tokenizer.kind is TokenizerKind.cosmos and model.tokenizer.path:
        path = weights_folder("model.tokenizer.path", model.tokenizer.path, TOKENIZER)
        tokenizer |= folder_identity(path)
    text: dict[str, Any] = {
        "kind": model.text_encoder.kind.name,
        "tokens": model.text_tokens,
        "dim": model.text_dim,
    }
    if model.text_encoder.kind is TextEncoderKind.t5 and model.text_encoder.path:
        path = weights_folder("model.text_encoder.path", model.text_encoder.path, TEXT_ENCODER)
        text |= folder_identity(path)
    return {"data": data, "tokenizer": tokenizer, "text_encoder": text}
