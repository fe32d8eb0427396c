"""LeRobot data sets of version 2.0, 2.1 and 3.0, read as they lie on disk.

Version 2 has one file a camera and episode, version 3 packs many episodes in a file. Which it is
the files decide, since labels are often wrong. An episode's part is found by time stamps.
Format: huggingface/lerobot, src/lerobot/datasets.
"""

import logging
from collections.abc import Iterator
from functools import partial

from cosmos_hydra.config import DataConfig
from cosmos_hydra.data.sources.captions import caption_of, root_of, table_of
from cosmos_hydra.data.sources.episodes import Episode, Found, Motion
from cosmos_hydra.data.sources.lerobot_meta import Meta, read_meta
from cosmos_hydra.data.sources.lerobot_rows import DAMAGES, RowReader, Rows
from cosmos_hydra.errors import ConfigError, StageError
from cosmos_hydra.reading import shown

IMAGES = "observation.images."
MOTION = {"action": "action", "state": "observation.state"}
logger = logging.getLogger(__name__)


def find_episodes(data: DataConfig) -> Found:
    """Return every chosen camera's videos with task, action and state, sorted by name.

    Raises: StageError when the data set is damaged or has no videos, ConfigError for a camera that
    it has not.
    """
    root = root_of(data)
    try:
        meta = read_meta(root)
    except DAMAGES as error:
        raise StageError(
            f"data.source={data.source} is no LeRobot data set of version 2.0, 2.1 or 3.0, or a "
            f"damaged one ({shown(error)}); download it again, or use data=folder"
        ) from error
    if meta.announced > len(meta.episodes):
        logger.warning(
            f"meta/info.json announces {meta.announced} episodes, "
            f"meta/episodes describes {len(meta.episodes)}"
        )
    cameras = _cameras(data, meta)
    table, found, reader = table_of(data, root), Found(), RowReader(meta, MOTION)
    videos: list[Episode] = []
    for described in meta.episodes:
        names = {camera: f"{camera}/{described.name}" for camera in cameras}
        try:
            rows = reader.rows(described)
            task = described.task or meta.tasks.get(rows.task_index)
            motion = _motion(meta, rows)
        except DAMAGES as error:
            found.failed |= dict.fromkeys(names.values(), _reason(error))
            continue
        for camera, name in names.items():
            if meta.is_depth(camera):
                found.skipped[name] = "depth map"
                continue
            own = name if name in table else described.name
            caption, caption_from = caption_of(own, task, table, data.prompt)
            if not caption:
                found.skipped[name] = "no caption: its task is empty, no data.prompt"
                continue
            try:
                video, segment_s = meta.video(described, camera)
            except DAMAGES as error:
                found.failed[name] = _reason(error)
                continue
            make = partial(Episode, name, video, caption, caption_from, described.name)
            videos.append(make(segment_s=segment_s, task=task, motion=motion))
    found.episodes = sorted(videos, key=lambda video: video.name)
    for name in sorted(table.keys() - set(_names(meta, cameras))):
        found.failed[name] = f"listed in {data.captions} but not in data.source"
    return found


def _names(meta: Meta, cameras: list[str]) -> Iterator[str]:
    for described in meta.episodes:
        yield described.name
        yield from (f"{camera}/{described.name}" for camera in cameras)


def _cameras(data: DataConfig, meta: Meta) -> list[str]:
    """Return the keys of the chosen cameras."""
    if not meta.cameras:
        raise StageError(
            f"data.source={data.source} holds no videos: features of dtype video are needed, "
            f"pictures in tables are not read"
        )
    if data.cameras is None:
        return meta.cameras
    chosen = []
    for name in data.cameras:
        matching = [key for key in (name, f"{IMAGES}{name}") if key in meta.cameras]
        if not matching:
            known = ", ".join(shown(key.removeprefix(IMAGES)) for key in meta.cameras)
            raise ConfigError(
                f"data.cameras={data.cameras} names {name}, unknown here; use {known}"
            )
        chosen.append(matching[0])
    return sorted(set(chosen))


def _motion(meta: Meta, rows: Rows) -> dict[str, Motion]:
    return {
        name: Motion(meta.dimensions(key, rows.values[key].shape[1]), rows.values[key], rows.time_s)
        for name, key in MOTION.items()
        if key in rows.values
    }


def _reason(error: Exception) -> str:
    is_own = type(error) in (ValueError, FileNotFoundError)
    return shown(error) if is_own else f"its metadata is misshapen ({shown(error)})"
