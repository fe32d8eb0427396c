"""Small LeRobot data sets of every version, as that library writes them; frames say who they are.

The number in a frame holds camera, episode and frame, see `who`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
from raw_videos import number_of, numbered_frames, write_video

FPS = 10
LENGTHS = (23, 31, 20, 27, 24, 29)
TASKS = ("pick up the cube", "open the drawer")
CAMERAS = ("observation.images.top", "observation.images.wrist")
JOINTS = ("shoulder", "elbow", "gripper")
BITS = {"camera": 512, "episode": 64}
V2_PATHS = {
    "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}
V3_PATHS = {
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
FEW_KEY_FRAMES = {"g": "40", "bf": "2"}


def who(picture: Any) -> tuple[str, int, int]:
    """Return camera, episode and frame that a picture shows."""
    camera, rest = divmod(number_of(picture), BITS["camera"])
    return (CAMERAS[camera], *divmod(rest, BITS["episode"]))


def action_of(episode: int, frame: int) -> list[float]:
    return [float(episode), float(frame), episode + frame / 64]


def state_of(episode: int, frame: int) -> list[float]:
    return [-value for value in action_of(episode, frame)]


def write_lerobot(
    root: Path, version: str, codec: str = "libx264", lengths: tuple[int, ...] = LENGTHS
) -> Path:
    """Write a data set of version 2.0, 2.1 or 3.0 with two cameras and return its folder."""
    is_packed = version == "3.0"
    write_info(root, version, lengths)
    tasks = [{"task_index": index, "task": task} for index, task in enumerate(TASKS)]
    episodes = [
        {"episode_index": e, "tasks": [TASKS[e % 2]], "length": length}
        for e, length in enumerate(lengths)
    ]
    (_write_packed if is_packed else _write_listed)(root, episodes, tasks, codec)
    return root


def write_info(
    root: Path, version: str, lengths: tuple[int, ...] = LENGTHS, **changed: Any
) -> None:
    """Write meta/info.json; `changed` replaces entries."""
    cameras = {
        camera: {
            "dtype": "video",
            "shape": [64, 160, 3],
            "names": ["height", "width", "channels"],
            "info" if version != "2.0" else "video_info": {
                "video.fps": float(FPS),
                "video.is_depth_map": False,
            },
        }
        for camera in CAMERAS
    }
    shape = {"dtype": "float32", "shape": [3]}
    numbers = ("timestamp", "frame_index", "episode_index", "index", "task_index")
    info = {
        "codebase_version": f"v{version}",
        "robot_type": "arm",
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(lengths)}"},
        **(V3_PATHS if version == "3.0" else V2_PATHS),
        "features": {
            "action": {**shape, "names": {"motors": list(JOINTS)}},
            "observation.state": {**shape, "names": list(JOINTS)},
            **cameras,
            **{name: {"dtype": "int64", "shape": [1], "names": None} for name in numbers},
        },
        **changed,
    }
    path = root / "meta/info.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(info))


def rows_of(episode: int, length: int, first: int = 0) -> list[dict[str, Any]]:
    """Return the rows of an episode; `first` is the number of rows before."""
    return [
        {
            "action": action_of(episode, frame),
            "observation.state": state_of(episode, frame),
            "timestamp": np.float32(frame / FPS),
            "frame_index": frame,
            "episode_index": episode,
            "index": first + frame,
            "task_index": episode % 2,
        }
        for frame in range(length)
    ]


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as LeRobot does, vectors as lists of float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    types = {
        "action": arrow.list_(arrow.float32(), 3),
        "observation.state": arrow.list_(arrow.float32()),
        "timestamp": arrow.float32(),
    }
    arrays = {name: arrow.array(values, types.get(name)) for name, values in columns.items()}
    parquet.write_table(arrow.table(arrays), path)


def frames_of(camera: int, episode: int, length: int) -> np.ndarray:
    """Return the pictures of an episode, each with its number."""
    first = BITS["camera"] * camera + BITS["episode"] * episode
    return numbered_frames(first + length)[first:]


def _write_listed(root: Path, episodes: list[dict], tasks: list[dict], codec: str) -> None:
    for name, lines in (("episodes", episodes), ("tasks", tasks)):
        (root / f"meta/{name}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    for episode in episodes:
        index, length = episode["episode_index"], episode["length"]
        write_table(root / f"data/chunk-000/episode_{index:06d}.parquet", rows_of(index, length))
        for camera, key in enumerate(CAMERAS):
            video = root / f"videos/chunk-000/{key}/episode_{index:06d}.mp4"
            _write(video, frames_of(camera, index, length), codec)


def _write_packed(root: Path, episodes: list[dict], tasks: list[dict], codec: str) -> None:
    # pandas' index of texts
    table = {"task_index": [t["task_index"] for t in tasks]}
    table["__index_level_0__"] = [t["task"] for t in tasks]
    parquet.write_table(arrow.table(table), root / "meta/tasks.parquet")
    half = (len(episodes) + 1) // 2
    described, first = [], 0
    for number, part in enumerate((episodes[:half], episodes[half:])):
        rows, begin = [], 0
        for episode in part:
            index, length = episode["episode_index"], episode["length"]
            rows += rows_of(index, length, first + begin)
            places: dict[str, Any] = {"data/chunk_index": 0, "data/file_index": number}
            for key in CAMERAS:
                places |= {
                    f"videos/{key}/chunk_index": 0,
                    f"videos/{key}/file_index": number,
                    f"videos/{key}/from_timestamp": begin / FPS,
                    f"videos/{key}/to_timestamp": (begin + length) / FPS,
                }
            described.append({**episode, **places, "stats/action/mean": [0.0, 0.0, 0.0]})
            begin += length
        first += begin
        write_table(root / f"data/chunk-000/file-{number:03d}.parquet", rows)
        for camera, key in enumerate(CAMERAS):
            frames = [frames_of(camera, e["episode_index"], e["length"]) for e in part]
            video = root / f"videos/{key}/chunk-000/file-{number:03d}.mp4"
            _write(video, np.concatenate(frames), codec)
    describe(root, described)


def describe(root: Path, described: list[dict[str, Any]]) -> None:
    """Write meta/episodes of version 3.0."""
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.Table.from_pylist(described), path)


def _write(path: Path, frames: np.ndarray, codec: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = FEW_KEY_FRAMES if codec == "libx264" else {"preset": "8", "crf": "10", "g": "20"}
    write_video(path, frames, codec, options, fps=FPS)
