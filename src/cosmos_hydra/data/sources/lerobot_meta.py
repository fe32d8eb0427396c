"""The folder `meta` of a LeRobot data set: features, episodes, tasks, and where files lie.

All of it is somebody else's: paths are made by substitution from a closed list of names, not by
`str.format`, and stay below the data set. What is wrong is a ValueError, KeyError or OSError.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from cosmos_hydra.data.sources.captions import read_lines
from cosmos_hydra.reading import contained, read_json, shown

# file layouts of version 2 and 3, used where info.json names none
PATHS = {
    False: (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ),
    True: (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    ),
}
PLACEHOLDER = re.compile(r"\{(\w+)(?::0?(\d{0,2})d)?\}")
# pandas' name for an index without one
TASK_COLUMNS = ("task", "__index_level_0__")


@dataclass(frozen=True)
class Described:
    """An episode as the metadata has it; `row` has where its parts lie in version 3."""

    index: int
    length: int
    task: str | None
    row: dict[str, Any]

    @property
    def name(self) -> str:
        return f"episode_{self.index:06d}"


@dataclass(frozen=True)
class Meta:
    """What `meta` says. `announced` is the number of episodes that there should be."""

    root: Path
    features: dict[str, dict[str, Any]]
    episodes: list[Described]
    tasks: dict[int, str]
    data_path: str
    video_path: str
    chunks_size: int
    announced: int

    @property
    def cameras(self) -> list[str]:
        """Return the keys of all videos, sorted."""
        return sorted(key for key, one in self.features.items() if one.get("dtype") == "video")

    def is_depth(self, camera: str) -> bool:
        """Return whether a camera measures distances."""
        feature = self.features[camera]
        facts = {**feature, **(feature.get("info") or feature.get("video_info") or {})}
        return any(bool(facts.get(key)) for key in ("video.is_depth_map", "is_depth_map"))

    def dimensions(self, key: str, count: int) -> tuple[str, ...]:
        """Return the names of a feature's dimensions, numbers where it does not name them all."""
        names = self.features[key].get("names")
        if isinstance(names, dict):
            names = [name for part in names.values() for name in _texts(part)]
        names = _texts(names)
        return tuple(names) if len(names) == count else tuple(map(str, range(count)))

    def data(self, episode: Described) -> Path:
        """Return the table with an episode's rows."""
        return self._file(self.data_path, episode, "data")

    def video(self, episode: Described, camera: str) -> tuple[Path, tuple[float, float] | None]:
        """Return the file of an episode's video and which part of it counts, seconds."""
        prefix = f"videos/{camera}"
        path = self._file(self.video_path, episode, prefix, camera)
        if f"{prefix}/from_timestamp" not in episode.row:
            return path, None
        begin_s, end_s = (float(episode.row[f"{prefix}/{end}_timestamp"]) for end in ("from", "to"))
        if not (math.isfinite(end_s) and 0 <= begin_s < end_s):
            raise ValueError(f"its part of the file is from {begin_s:g} s to {end_s:g} s")
        return path, (begin_s, end_s)

    def _file(self, template: str, episode: Described, prefix: str, camera: str = "") -> Path:
        values: dict[str, str | int] = {
            "episode_index": episode.index,
            "episode_chunk": episode.index // self.chunks_size,
        }
        if camera:
            values["video_key"] = camera
        for name in ("chunk_index", "file_index"):
            if f"{prefix}/{name}" in episode.row:
                values[name] = int(episode.row[f"{prefix}/{name}"])
        path = fill(self.root, template, values)
        if not path.is_file():
            raise FileNotFoundError(f"{path.relative_to(self.root)} is missing")
        return path


def fill(root: Path, template: str, values: dict[str, str | int]) -> Path:
    """Return the path below root that a template names. Raises: ValueError for any other."""

    def value(match: re.Match[str]) -> str:
        name, width = match.groups()
        if name not in values:
            raise ValueError(f"path {shown(template)} has an unknown place {{{shown(name)}}}")
        return f"{values[name]:0{width}d}" if width else str(values[name])

    name = PLACEHOLDER.sub(value, template)
    if "{" in name or "}" in name:
        raise ValueError(f"path {shown(template)} has more than plain places in it")
    return contained(root, name)


def read_meta(root: Path) -> Meta:
    """Return the metadata of a data set of version 2.0, 2.1 or 3.0."""
    info = read_json(contained(root, "meta/info.json"))
    packed = sorted(root.glob("meta/episodes/*/*.parquet"))
    episodes = _packed_episodes(root, packed) if packed else _listed_episodes(root)
    data_path, video_path = PATHS[bool(packed)]
    features = info["features"]
    if not isinstance(features, dict) or not all(isinstance(f, dict) for f in features.values()):
        raise ValueError("meta/info.json: features is no table")
    meta = Meta(
        root=root,
        features=features,
        episodes=sorted(episodes, key=lambda episode: episode.index),
        tasks=_tasks(root),
        data_path=str(info.get("data_path") or data_path),
        video_path=str(info.get("video_path") or video_path),
        chunks_size=int(info.get("chunks_size") or 1000),
        announced=int(info.get("total_episodes") or 0),
    )
    if meta.chunks_size < 1:
        raise ValueError(f"meta/info.json: chunks_size is {meta.chunks_size}")
    if len({episode.index for episode in episodes}) < len(episodes):
        raise ValueError("meta/episodes: an episode is described twice")
    return meta


def _listed_episodes(root: Path) -> list[Described]:
    path = root / "meta/episodes.jsonl"
    if not path.is_file():
        raise ValueError("neither meta/episodes.jsonl nor a table below meta/episodes")
    rows = read_lines(contained(root, "meta/episodes.jsonl"))
    return [_described(row, {}) for row in rows]


def _packed_episodes(root: Path, paths: list[Path]) -> list[Described]:
    episodes = []
    for path in paths:
        with parquet.ParquetFile(contained(root, path.relative_to(root).as_posix())) as file:
            # those of statistics are many and not needed
            names = [n for n in file.schema_arrow.names if not n.startswith(("stats/", "meta/"))]
            rows = file.read(columns=names).to_pylist()
        episodes += [_described(row, row) for row in rows]
    return episodes


def _described(entry: Any, row: dict[str, Any]) -> Described:
    if not isinstance(entry, dict):
        raise ValueError("meta/episodes: a line is no table")
    index, length = entry["episode_index"], entry["length"]
    if not isinstance(index, int) or not isinstance(length, int) or index < 0:
        numbers = shown(f"{index!r}, {length!r}")
        raise ValueError(f"meta/episodes: episode_index or length is no number ({numbers})")
    tasks = [task.strip() for task in _texts(entry.get("tasks")) if task.strip()]
    return Described(index, length, tasks[0] if tasks else None, row)


def _tasks(root: Path) -> dict[int, str]:
    """Return tasks by number; none when the file is gone, as episodes name theirs too."""
    if (root / "meta/tasks.parquet").is_file():
        rows = parquet.read_table(contained(root, "meta/tasks.parquet")).to_pylist()
    elif (root / "meta/tasks.jsonl").is_file():
        rows = read_lines(contained(root, "meta/tasks.jsonl"))
    else:
        return {}
    tasks = {}
    for row in rows:
        text = next((row[name] for name in TASK_COLUMNS if name in row), None)
        if isinstance(text, str) and text.strip():
            tasks[int(row["task_index"])] = text.strip()
    return tasks


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [str(item) for item in value] if isinstance(value, list) else []
