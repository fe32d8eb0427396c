"""Rendered videos of a robot arm, written as H.264 files and read back like any other video.

Every video shows one motion from one view; both are in its caption. Phase, speed and a small turn
are drawn per video. Files that exist are kept, so rendering can be interrupted.
"""

import itertools
from pathlib import Path
from typing import Any

from cosmos_hydra import config as schema
from cosmos_hydra import files
from cosmos_hydra.changes import difference
from cosmos_hydra.claim import claim
from cosmos_hydra.config import DataConfig
from cosmos_hydra.data.sources import folder
from cosmos_hydra.data.sources.arm import MOTIONS, VIEWS, render
from cosmos_hydra.data.sources.episodes import Found
from cosmos_hydra.data.video import write_mp4
from cosmos_hydra.errors import ConfigError, StageError
from cosmos_hydra.logs import progress
from cosmos_hydra.reading import read_json
from cosmos_hydra.seeds import numpy_generator


def find_episodes(data: DataConfig) -> Found:
    """Return the rendered videos; those that are missing are rendered first."""
    render_missing(data)
    return folder.find_episodes(data)


def render_missing(data: DataConfig) -> None:
    """Render the videos that data.source lacks, each with its caption in a .txt beside it."""
    assert data.source is not None
    root, wanted = Path(data.source).expanduser(), data.synthetic
    for key, names, known in (
        ("views", wanted.views, VIEWS),
        ("motions", wanted.motions, MOTIONS),
    ):
        if not names or not set(names) <= set(known):
            raise ConfigError(f"data.synthetic.{key}={names} is unknown; use {', '.join(known)}")
    scenes = list(
        itertools.islice(
            itertools.cycle(itertools.product(wanted.motions, wanted.views)), wanted.num_videos
        )
    )
    _keep_settings(root, {"seed": data.seed, **schema.to_dict(wanted)})
    names = [f"{number:03d}_{motion}_{view}" for number, (motion, view) in enumerate(scenes)]
    missing = [item for item in enumerate(names) if not (root / f"{item[1]}.mp4").is_file()]
    if not missing:
        return
    with (
        claim(root / files.LOCK, f"data.source={root}"),
        progress("render", len(missing), "videos") as bar,
    ):
        files.remove_leftovers(root)
        for number, name in missing:
            motion, view = scenes[number]
            frames = render(
                motion,
                view,
                num_frames=wanted.frames,
                fps=wanted.fps,
                height=wanted.height,
                width=wanted.width,
                generator=numpy_generator(data.seed, "synthetic", number),
            )
            caption = f"A robot arm {MOTIONS[motion]}, seen {VIEWS[view].caption}."
            files.write_bytes(root / f"{name}.txt", f"{caption}\n".encode())
            write_mp4(root / f"{name}.mp4", frames, wanted.fps)
            bar.advance()


def _keep_settings(root: Path, settings: dict[str, Any]) -> None:
    """Write render.json beside the videos; refuse a folder rendered with other settings."""
    file = root / "render.json"
    if not file.is_file():
        files.write_json(file, settings)
        return
    try:
        rendered = read_json(file)
    except (OSError, ValueError) as error:
        raise StageError(f"{file} is damaged ({error}); remove the folder") from error
    changes = difference(rendered, settings, "data.synthetic")
    if changes:
        raise StageError(
            f"data.source={root} holds videos rendered otherwise ({', '.join(changes)}); "
            f"choose another data.source or data.name, or remove the folder"
        )
