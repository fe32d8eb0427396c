"""Action and state of a clip's frames, kept with its sample, and their statistics.

`{i}.motion.safetensors` has "action" and "state", float32 [F, D], one row for each frame of the
clip: that of the moment the frame shows. Values are neither resampled nor summed. NaN stands where
a source has no row, as for the action of the last frame.
Legend: F frames, T rows of an episode, D dimensions.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from cosmos_hydra import files
from cosmos_hydra.data.clips import Span
from cosmos_hydra.data.sources.episodes import Episode
from cosmos_hydra.data.spans import NO_ROW, row_numbers
from cosmos_hydra.data.store import SampleStore
from cosmos_hydra.data.video import VideoInfo
from cosmos_hydra.errors import StageError
from cosmos_hydra.reading import contained, read_tensors

QUANTILES = {"q01": 0.01, "q99": 0.99}


def motion_of(
    episode: Episode, info: VideoInfo, span: Span, frames: Sequence[int]
) -> dict[str, torch.Tensor]:
    """Return float32 [F, D] by name for frames of a span, numbered as in the file."""
    tensors = {}
    for name, motion in episode.motion.items():
        rows = row_numbers(motion, episode, info, span)[np.asarray(frames) - span.first]
        values = motion.values[np.maximum(rows, 0)]
        values[rows == NO_ROW] = np.nan
        tensors[name] = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    return tensors


def motion_file(sample_id: str) -> str:
    return f"{sample_id}.motion.safetensors"


def write_motion(folder: Path, sample_id: str, motion: dict[str, torch.Tensor]) -> str:
    """Write what a sample's robot did and return the file's name."""
    name = motion_file(sample_id)
    files.write_with(folder / name, lambda path: save_file(motion, path))
    return name


def read_motion(store: SampleStore, sample_id: str) -> dict[str, torch.Tensor]:
    """Return action and state of a sample, [F, D] each; nothing where its source had none.

    Raises: StageError.
    """
    path = contained(store.layout.folder, motion_file(sample_id))
    if not path.is_file():
        return {}
    try:
        return read_tensors(path)
    except (OSError, ValueError) as error:
        raise StageError(f"{path} is damaged ({error}); preprocess again") from error


def rows_within(
    episode: Episode, info: VideoInfo, span: Span, first: int, stop: int
) -> dict[str, np.ndarray]:
    """Return the rows [T, D] of the frames [first, stop), each once."""
    parts = {}
    for name, motion in episode.motion.items():
        rows = row_numbers(motion, episode, info, span)[first - span.first : stop - span.first]
        parts[name] = motion.values[np.unique(rows[rows != NO_ROW])]
    return parts


def statistics(
    names: dict[str, tuple[str, ...]], parts: Iterable[dict[str, np.ndarray]]
) -> dict[str, Any]:
    """Return names and statistics of each dimension over all rows, JSON-ready."""
    rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for part in parts:
        for name, values in part.items():
            rows[name].append(values)
    found = {}
    for name, columns in names.items():
        values = np.concatenate(rows[name]).astype(np.float64)
        if not len(values):
            continue
        figures = {
            "mean": values.mean(0),
            "std": values.std(0),
            "min": values.min(0),
            "max": values.max(0),
            **{key: np.quantile(values, share, axis=0) for key, share in QUANTILES.items()},
        }
        numbers = {key: figure.tolist() for key, figure in figures.items()}
        found[name] = {"names": list(columns), "rows": len(values), **numbers}
    return found
