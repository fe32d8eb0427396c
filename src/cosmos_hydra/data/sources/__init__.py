"""Where videos come from; one module a kind of source, with a function `find_episodes`."""

import importlib

from cosmos_hydra.config import DataConfig, SourceKind
from cosmos_hydra.data.sources.episodes import Episode, Found, Motion

__all__ = ["Episode", "Found", "Motion", "find"]

# by name, so that a source imports what only it needs
SOURCES = {
    SourceKind.synthetic: "synthetic",
    SourceKind.folder: "folder",
    SourceKind.bridge: "bridge",
    SourceKind.lerobot: "lerobot",
}


def find(data: DataConfig) -> Found:
    """Return the videos of the configured source, sorted by name.

    Raises: StageError when there is nothing to read, ConfigError for a bad table.
    """
    source = importlib.import_module(f"{__name__}.{SOURCES[data.kind]}")
    found: Found = source.find_episodes(data)
    return found
