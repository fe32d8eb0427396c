"""What is to be made in a folder of samples: what is asked for, less what is there."""

import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cosmos_hydra.changes import difference
from cosmos_hydra.config import DataConfig, SampleFormat
from cosmos_hydra.data.clips import Clip
from cosmos_hydra.data.inventory import Inventory
from cosmos_hydra.data.keys import clip_key, clip_part, sample_key, text_key
from cosmos_hydra.data.layout import Layout
from cosmos_hydra.data.sources import Found

MAX_GROUP = 8  # clips that one process makes at a time
FEWEST_GROUPS = 32  # so many, where there are as many clips, balance the load
CAPTIONS_AT_ONCE = 64
FACTS = ("sha256", "caption", "about")  # of a video, what its samples depend on
OUR_ID = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}")
OUR_TEXT = re.compile(r"[0-9a-f]{16}\.safetensors")


@dataclass
class Work:
    """What is to be made, the same in all processes that make it but for `there`."""

    data: DataConfig
    # settings, and the videos that are used; plan.json
    plan: dict[str, Any]
    # the other videos that were looked at
    left_out: dict[str, Any]
    inventory: Inventory
    # identities of the encoders
    tokenizer: dict[str, Any]
    text_encoder: dict[str, Any]
    # file name of a tokenizer that was fitted on the videos
    fitted_tokenizer: str | None
    # names of the samples that were on disk at the start
    there: set[str]

    @cached_property
    def ids(self) -> dict[Clip, str]:
        """Return the name of each clip's sample."""
        hashes = self.inventory.hashes
        return {
            clip: sample_key(
                clip_key(clip, hashes[clip.video], self.data, self.tokenizer),
                clip.video,
                clip.fps,
                text_key(self.caption(clip), self.text_encoder),
                self.inventory.episodes[clip.video].about,
            )
            for clip in self.inventory.clips
        }

    def caption(self, clip: Clip) -> str:
        return self.inventory.episodes[clip.video].caption

    @cached_property
    def missing(self) -> list[Clip]:
        """Return the clips without a sample."""
        return [clip for clip, sample_id in self.ids.items() if sample_id not in self.there]

    @cached_property
    def latents(self) -> dict[str, str]:
        """Return a sample that is there for every latent that is."""
        return {clip_part(sample_id): sample_id for sample_id in sorted(self.there)}

    @property
    def clip_groups(self) -> list[list[Clip]]:
        """Return the clips in the parts that processes share, neighbours together."""
        clips = self.inventory.clips
        return _parts(clips, max(1, min(MAX_GROUP, len(clips) // FEWEST_GROUPS)))

    @property
    def num_groups(self) -> int:
        """Return how many parts there are; the last is the manifest."""
        return len(self.caption_groups) + len(self.clip_groups) + 1

    def fitted(self, layout: Layout) -> Path:
        """Return where the tokenizer lies that was fitted on the videos, if one was."""
        return layout.beside(self.fitted_tokenizer or "none")

    @property
    def caption_groups(self) -> list[list[str]]:
        """Return the captions in the parts that processes share."""
        return _parts(sorted(self.captions), CAPTIONS_AT_ONCE)

    @property
    def captions(self) -> set[str]:
        return {episode.caption for episode in self.inventory.episodes.values()}

    @property
    def needed_captions(self) -> set[str]:
        """Return the captions of what is to be made."""
        return {self.caption(clip) for clip in self.missing}

    def summary(self) -> str:
        """Return in a line what is to be made and what is there."""
        missing = len(self.missing)
        known = sum(clip_part(self.ids[clip]) in self.latents for clip in self.missing)
        unwanted = len(self.there - set(self.ids.values()))
        return (
            f"samples: {missing} to make"
            + f" ({known} of them with a latent that is there)" * bool(known)
            + f", {len(self.ids) - missing} there"
            + f", {unwanted} no longer wanted (removed at the end)" * bool(unwanted)
        )


def _parts(items: list[Any], size: int) -> list[list[Any]]:
    return [items[first : first + size] for first in range(0, len(items), size)]


def facts_of(found: Found, hashes: dict[str, str]) -> dict[str, dict[str, str]]:
    """Return of every video that is found what its samples depend on."""
    return {
        episode.name: {
            "sha256": hashes[episode.name],
            "caption": episode.caption,
            "about": episode.about,
        }
        for episode in found.episodes
    }


def changes(manifest: dict[str, Any], settings: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """Return a text for every setting and video that is other than a manifest says.

    Raises: what a misshapen manifest raises.
    """
    old = manifest["settings"]
    left_out = manifest.get("left_out")
    if left_out is None:  # version 1, which let clips share all frames but one
        old = {**old, "data": {**old["data"], "max_overlap": settings["data"]["max_overlap"]}}
        left_out = {name: facts.get(name) for name in (*manifest["skipped"], *manifest["failed"])}
    seen = {
        name: {"about": "", **{key: video[key] for key in FACTS if key in video}}
        for name, video in manifest["videos"].items()
    }
    gone = seen.keys() - facts.keys()
    seen |= left_out
    other = {name for name, video in facts.items() if seen.get(name) != video}
    return difference(old, settings) + [f"video {name}" for name in sorted(gone | other)]


def samples_in(layout: Layout) -> dict[str, set[str]]:
    """Return the samples of a folder, whole or not: of each the ends of its files' names."""
    found: dict[str, set[str]] = defaultdict(set)
    if layout.folder.is_dir():
        for path in layout.folder.iterdir():
            sample_id, _, end = path.name.partition(".")
            if sample_id and end:
                found[sample_id].add(end)
    return {
        sample_id: ends
        for sample_id, ends in found.items()
        if "info.json" in ends or OUR_ID.fullmatch(sample_id)
    }


def whole_samples(layout: Layout) -> set[str]:
    """Return the samples of which every file is there, but for a caption's shared one."""
    return {name for name, ends in samples_in(layout).items() if layout.ends <= ends}


def lacks_text(layout: Layout, captions: Collection[str], encoder: dict[str, Any]) -> set[str]:
    """Return the captions whose samples need an embedding that is not there."""
    if layout.format is SampleFormat.nemo:
        return set()
    there = {path.name for path in layout.texts.iterdir()} if layout.texts.is_dir() else set()
    return {c for c in captions if f"{text_key(c, encoder)}.safetensors" not in there}


def unwanted_samples(layout: Layout, wanted: Collection[str]) -> dict[str, set[str]]:
    """Return the samples of a folder but these."""
    return {name: ends for name, ends in samples_in(layout).items() if name not in wanted}


def remove_unwanted(layout: Layout, wanted: Collection[str], texts: Collection[str]) -> None:
    """Remove all samples and embeddings but these."""
    for name, ends in unwanted_samples(layout, wanted).items():
        # info.json first: without it the rest does not count
        for end in sorted(ends, key=lambda end: end != "info.json"):
            (layout.folder / f"{name}.{end}").unlink(missing_ok=True)
    for path in layout.texts.iterdir() if layout.texts.is_dir() else ():
        if OUR_TEXT.fullmatch(path.name) and path.name not in texts:
            path.unlink(missing_ok=True)
