"""What every source returns: videos with captions, and why others were left out."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Episode:
    """One video. `name` is its path below the source folder, with forward slashes."""

    name: str
    video: Path
    caption: str
    # sidecar, table or data.prompt
    caption_from: str


@dataclass
class Found:
    """Episodes, and the names of the videos that are none, each with its reason.

    Invariant: found = kept + skipped + failed, counted in videos.
    """

    episodes: list[Episode] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
