"""What every source returns: videos with captions and motion, and why others were left out."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cosmos_hydra import files

DIGITS = 16


@dataclass(frozen=True)
class Motion:
    """What a robot did or was told, one row a frame; `names` says what the columns are.

    values float32 [T, D], without NaN; time_s [T] ascending from the episode's begin, or None where
    row i belongs to frame i.
    """

    names: tuple[str, ...]
    values: np.ndarray
    time_s: np.ndarray | None = None

    @property
    def sha256(self) -> str:
        """Return a hash of all of it."""
        digest = hashlib.sha256(repr((self.names, self.values.shape)).encode())
        digest.update(self.values.tobytes())
        digest.update(b"" if self.time_s is None else self.time_s.tobytes())
        return digest.hexdigest()


def sha256(values: np.ndarray) -> str:
    """Return the hash of an array's numbers."""
    return hashlib.sha256(np.ascontiguousarray(values, np.float64).tobytes()).hexdigest()


@dataclass(frozen=True)
class Episode:
    """One camera's video of one episode.

    `name` is unique, plain text with forward slashes. `episode` is what is held out together, by
    default the video alone. `segment_s` is the part of the file that counts, as two presentation
    times, the second one excluded; None = all. `motion` has "action" and "state", as far as known.
    """

    name: str
    video: Path
    caption: str
    # sidecar, table, task or data.prompt
    caption_from: str
    episode: str = ""
    segment_s: tuple[float, float] | None = None
    # what the robot was told to do; the caption may say more
    task: str | None = None
    motion: dict[str, Motion] = field(default_factory=dict, compare=False)

    @property
    def about(self) -> str:
        """Return a hash of what the source says beside the caption; empty where that is nothing."""
        if self.episode == self.name and not (self.segment_s or self.task or self.motion):
            return ""
        motion = {
            key: [one.names, sha256(one.values), None if one.time_s is None else sha256(one.time_s)]
            for key, one in self.motion.items()
        }
        parts = (self.episode, self.segment_s, self.task, motion)
        return files.sha256_of_json(parts)[:DIGITS]

    def __post_init__(self) -> None:
        if not self.episode:
            object.__setattr__(self, "episode", self.name)


@dataclass
class Found:
    """Episodes, and the names of the videos that are none, each with its reason.

    Invariant: found = kept + skipped + failed, counted in videos.
    """

    episodes: list[Episode] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
