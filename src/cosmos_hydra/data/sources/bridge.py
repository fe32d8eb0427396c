"""BridgeData as packaged for Cosmos: `videos/{split}/{id}/rgb.mp4`, `annotation/{split}/{id}.json`.

An annotation has the instruction (`texts`), `state` [T, 7], `action` [T-1, 7] from each frame to
the next, and `continuous_gripper_state` [T].
"""

from typing import Any

import numpy as np

from cosmos_hydra.config import DataConfig
from cosmos_hydra.data.sources.captions import caption_of, pick, root_of, table_of
from cosmos_hydra.data.sources.episodes import Episode, Found, Motion
from cosmos_hydra.errors import StageError
from cosmos_hydra.reading import read_json, shown

# metres and radians in the frame of the arm's base; gripper 1 = open
POSE = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
STATE = (*POSE, "continuous_gripper")
ACTION = tuple(f"delta_{name}" for name in POSE[:-1]) + POSE[-1:]


def find_episodes(data: DataConfig) -> Found:
    """Return the videos of every split with their instructions, sorted by name.

    Raises: StageError when there are none.
    """
    root = root_of(data)
    table, found = table_of(data, root), Found()
    videos = sorted(root.glob("videos/*/*/rgb.mp4"))
    if not videos:
        raise StageError(
            f"data.source={data.source} holds no videos/{{split}}/{{id}}/rgb.mp4; set it to the "
            f"folder that holds videos and annotation, or use data=folder"
        )
    for video in videos:
        name, episode = video.relative_to(root).as_posix(), f"{video.parts[-3]}/{video.parts[-2]}"
        annotation = root / "annotation" / f"{episode}.json"
        if not annotation.is_file():
            found.failed[name] = "no annotation"
            continue
        try:
            record = read_json(annotation)
            task, motion = pick(record, ("texts",)), _motion(record)
        except (OSError, ValueError, TypeError, KeyError) as error:
            found.failed[name] = f"annotation is damaged ({shown(error)})"
            continue
        caption, caption_from = caption_of(name, task, table, data.prompt)
        if caption:
            found.episodes.append(
                Episode(name, video, caption, caption_from, episode, task=task, motion=motion)
            )
        else:
            found.skipped[name] = "no caption: no texts in its annotation, no data.prompt"
    for name in sorted(table.keys() - {video.relative_to(root).as_posix() for video in videos}):
        found.failed[name] = f"listed in {data.captions} but not below data.source"
    return found


def _motion(record: dict[str, Any]) -> dict[str, Motion]:
    state = np.column_stack([record["state"], record["continuous_gripper_state"]])
    return {"action": _rows(ACTION, record["action"]), "state": _rows(STATE, state)}


def _rows(names: tuple[str, ...], rows: Any) -> Motion:
    values = np.asarray(rows, np.float32)
    if values.ndim != 2 or values.shape[1] != len(names):
        raise ValueError(f"rows of shape {values.shape} for {len(names)} dimensions")
    if not np.isfinite(values).all():
        raise ValueError("a value that is no finite number")
    return Motion(names, values)
