"""Where videos come from; one file a kind of source."""

from cosmos_hydra.config import DataConfig, SourceKind
from cosmos_hydra.data.sources.episodes import Episode, Found
from cosmos_hydra.data.sources.folder import find_episodes
from cosmos_hydra.data.sources.synthetic import render_missing

__all__ = ["Episode", "Found", "find"]


def find(data: DataConfig) -> Found:
    """Return the episodes of the configured source; synthetic videos are rendered first.

    Raises: StageError when there is nothing to read.
    """
    if data.kind is SourceKind.synthetic:
        render_missing(data)
    return find_episodes(data)
