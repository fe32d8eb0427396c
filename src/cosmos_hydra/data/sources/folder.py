"""A folder of videos, searched recursively.

A video's caption comes from the table `data.captions`, else from a .txt or .json file of the
same name beside it, else from `data.prompt`; a video without any is skipped, with that reason.
"""

import json
from pathlib import Path

from cosmos_hydra.config import DataConfig
from cosmos_hydra.data.sources.captions import CAPTION_COLUMNS, pick, root_of, table_of
from cosmos_hydra.data.sources.episodes import Episode, Found
from cosmos_hydra.data.video import VIDEO_SUFFIXES
from cosmos_hydra.errors import StageError


def find_episodes(data: DataConfig) -> Found:
    """Return the videos below data.source with their captions, sorted by name.

    Raises: StageError for a missing folder or one without videos, ConfigError for a bad table.
    """
    root = root_of(data)
    table = table_of(data, root)
    videos = {
        path.relative_to(root).as_posix(): path
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() and path.name[0] != "."
    }
    if not videos:
        suffixes = " ".join(sorted(VIDEO_SUFFIXES))
        raise StageError(f"data.source={data.source} holds no videos; looked for {suffixes}")
    found = Found()
    for name, path in videos.items():
        try:
            caption, caption_from = _caption(name, path, table, data.prompt)
        except (ValueError, RecursionError) as error:
            found.failed[name] = f"caption file cannot be read ({error})"
            continue
        if caption:
            found.episodes.append(Episode(name, path, caption, caption_from))
        else:
            found.skipped[name] = "no caption: no .txt or .json beside it, no data.prompt"
    for name in sorted(table.keys() - videos.keys()):
        found.failed[name] = f"listed in {data.captions} but not below data.source"
    return found


def _caption(
    name: str, path: Path, table: dict[str, str], prompt: str | None
) -> tuple[str | None, str]:
    if name in table:
        return table[name], "table"
    text = path.with_suffix(".txt")
    if text.is_file():
        written = text.read_text(encoding="utf-8").strip()
        if written:
            return written, "sidecar"
    record = path.with_suffix(".json")
    if record.is_file():
        caption = pick(json.loads(record.read_text(encoding="utf-8")), CAPTION_COLUMNS)
        if caption:
            return caption, "sidecar"
    return prompt, "data.prompt"
