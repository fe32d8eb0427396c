"""The rows of LeRobot episodes: time, task, action and state, from tables of one or of many."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet

from cosmos_hydra.data.sources.lerobot_meta import Described, Meta

# what reading a damaged file raises
DAMAGES = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    arrow.ArrowException,
)
PLAIN = ("timestamp", "episode_index", "task_index")


@dataclass(frozen=True)
class Rows:
    """An episode's rows: time_s [T] from its begin, values float32 [T, D] by feature."""

    time_s: np.ndarray
    task_index: int
    values: dict[str, np.ndarray]


class RowReader:
    """Read the rows of one episode after the other; a table of many episodes is read once."""

    def __init__(self, meta: Meta, motion: dict[str, str]) -> None:
        self.meta = meta
        self.features = [key for key in motion.values() if key in meta.features]
        self._table = lru_cache(maxsize=2)(self._read)

    def rows(self, episode: Described) -> Rows:
        """Return an episode's rows. Raises: one of DAMAGES."""
        path = self.meta.data(episode)
        table = self._table(path)
        mine = np.flatnonzero(table["episode_index"][:, 0] == episode.index)
        if len(mine) != episode.length or not len(mine):
            raise ValueError(f"its table has {len(mine)} rows, its length is {episode.length}")
        time_s = table["timestamp"][mine, 0].astype(np.float64)
        if not (np.isfinite(time_s).all() and (np.diff(time_s) > 0).all()):
            raise ValueError("its time stamps do not ascend")
        values = {key: table[key][mine].astype(np.float32) for key in self.features}
        for key, rows in values.items():
            wrong = np.flatnonzero(~np.isfinite(rows).all(1))
            if len(wrong):
                raise ValueError(f"{key} is not finite in row {wrong[0]}")
        task_index = int(table["task_index"][mine[0], 0]) if "task_index" in table else -1
        return Rows(time_s, task_index, values)

    def _read(self, path: Path) -> dict[str, np.ndarray]:
        """Return columns as [rows, dimensions]."""
        name = path.relative_to(self.meta.root)
        try:
            with parquet.ParquetFile(path) as file:
                there = set(file.schema_arrow.names)
                lacking = {*PLAIN[:2], *self.features} - there
                if lacking:
                    raise ValueError(f"{name} lacks the column {min(lacking)}")
                wanted = [column for column in (*PLAIN, *self.features) if column in there]
                table = file.read(columns=wanted)
            return {column: _matrix(table[column], column) for column in wanted}
        except (OSError, arrow.ArrowException) as error:
            raise ValueError(f"{name} cannot be read ({error})") from error


def _matrix(column: Any, name: str) -> np.ndarray:
    """Return a column of numbers or of equally long lists of them as [rows, dimensions]."""
    values = column.combine_chunks()
    rows, is_sound = len(values), True
    while isinstance(values, arrow.ListArray | arrow.FixedSizeListArray | arrow.LargeListArray):
        is_sound &= not values.null_count and len(values.value_lengths().unique()) <= 1
        values = values.flatten()
    numbers = values.to_numpy(zero_copy_only=False)
    if not is_sound or values.null_count or numbers.dtype.kind not in "iufb":
        raise ValueError(f"{name} has rows without numbers or of different lengths")
    return numbers.reshape(rows, -1)
