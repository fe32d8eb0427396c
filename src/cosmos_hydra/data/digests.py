"""Hashes of videos, remembered between runs by path, size and time of change.

A video that was changed and given back both its size and its time is not noticed; whoever wants
every byte read again removes the file.
"""

import time
from pathlib import Path

from cosmos_hydra import files
from cosmos_hydra.reading import read_json

# file systems may give two changes within this time the same time stamp
SETTLED_S = 2.0


class Digests:
    """The sha256 of video files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.used: dict[str, list[int | str]] = {}
        try:
            self.known = read_json(path)
        except (OSError, ValueError):
            self.known = {}

    def sha256_of(self, video: Path) -> str:
        """Return a video's hash; that of one that cannot be read is empty."""
        name = str(video.absolute())
        try:
            status = video.stat()
            facts = [status.st_size, status.st_mtime_ns]
            known = self.known.get(name)
            if isinstance(known, list) and known[:-1] == facts:
                digest = str(known[-1])
            else:
                digest = files.sha256_of(video)
        except OSError:
            return ""
        if time.time() - status.st_mtime > SETTLED_S:
            self.used[name] = [*facts, digest]
        return digest

    def save(self) -> None:
        """Remember the hashes that were asked for, and no others."""
        if self.used != self.known:
            files.write_json(self.path, self.used)
