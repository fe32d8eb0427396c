"""A folder of videos, searched recursively.

A video's caption comes from the table `data.captions`, else from a .txt or .json file of the
same name beside it, else from `data.prompt`; a video without any is skipped, with that reason.
"""

import csv
import json
import os
from pathlib import Path

from cosmos_hydra.config import DataConfig
from cosmos_hydra.data.sources.episodes import Episode, Found
from cosmos_hydra.data.video import VIDEO_SUFFIXES
from cosmos_hydra.errors import ConfigError, StageError
from cosmos_hydra.reading import shown

VIDEO_COLUMNS = ("video", "video_path", "file", "path")
CAPTION_COLUMNS = ("caption", "prompt", "text", "texts", "language_instruction_0", "task")


def find_episodes(data: DataConfig) -> Found:
    """Return the videos below data.source with their captions, sorted by name.

    Raises: StageError for a missing folder or one without videos, ConfigError for a bad table.
    """
    assert data.source is not None
    root = Path(data.source).expanduser()
    if not root.is_dir():
        raise StageError(f"data.source={data.source} is no folder; set it to your videos")
    table = read_table(data.captions, root) if data.captions else {}
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
        caption = _pick(json.loads(record.read_text(encoding="utf-8")), CAPTION_COLUMNS)
        if caption:
            return caption, "sidecar"
    return prompt, "data.prompt"


def read_table(path: str, root: Path) -> dict[str, str]:
    """Return captions by video name from a CSV with a header or a JSONL file.

    Raises: ConfigError when the file is missing, malformed, lacks a column, or names a video
    outside data.source.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"data.captions={path} is no file; a CSV or JSONL table is expected")
    captions = {}
    try:
        rows = _rows(file)
    except (ValueError, RecursionError, csv.Error) as error:
        raise ConfigError(f"data.captions={path} cannot be read ({error})") from error
    for number, row in enumerate(rows, start=1):
        video, caption = _pick(row, VIDEO_COLUMNS), _pick(row, CAPTION_COLUMNS)
        if not isinstance(row, dict) or not video or not caption:
            raise ConfigError(
                f"data.captions={path} row {number} lacks a video or a caption; "
                f"columns: video, caption"
            )
        # by name, not by target: links to other disks are common, `..` is not
        inside = Path(os.path.normpath(root / video))
        if not inside.is_relative_to(os.path.normpath(root)):
            raise ConfigError(
                f"data.captions={path} row {number} names {shown(video)}, outside "
                f"data.source={root}"
            )
        captions[inside.relative_to(os.path.normpath(root)).as_posix()] = caption
    return captions


def _rows(file: Path) -> list[dict[str, object]]:
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix.lower() in (".jsonl", ".ndjson", ".json"):
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    return list(csv.DictReader(text.splitlines(keepends=True)))


def _pick(record: object, names: tuple[str, ...]) -> str | None:
    """Return the first text among the named fields; a record may itself be the text."""
    if isinstance(record, str):
        return record.strip()
    if not isinstance(record, dict):
        return None
    for name in names:
        value = record.get(name)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, str) and value.strip():
            return value.strip()
    return None
