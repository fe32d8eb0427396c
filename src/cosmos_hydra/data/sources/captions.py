"""The caption of a video: from the table `data.captions`, else the source's own, else data.prompt.

In `data.prompt` the text `{task}` stands for what the source says that the robot does.
"""

import csv
import json
import os
from pathlib import Path
from typing import Any

from cosmos_hydra.config import DataConfig
from cosmos_hydra.errors import ConfigError, StageError
from cosmos_hydra.reading import read_text, shown

VIDEO_COLUMNS = ("video", "video_path", "file", "path")
CAPTION_COLUMNS = ("caption", "prompt", "text", "texts", "language_instruction_0", "task")
TASK = "{task}"


def root_of(data: DataConfig) -> Path:
    """Return the folder data.source. Raises: StageError when it is none."""
    assert data.source is not None
    root = Path(data.source).expanduser()
    if not root.is_dir():
        raise StageError(f"data.source={data.source} is no folder; set it to your videos")
    return root


def table_of(data: DataConfig, root: Path) -> dict[str, str]:
    """Return captions by video name from data.captions, if that is set."""
    return read_table(data.captions, root) if data.captions else {}


def caption_of(
    name: str, task: str | None, table: dict[str, str], prompt: str | None
) -> tuple[str | None, str]:
    """Return the caption of a video whose task is known or not, and where it is from."""
    if name in table:
        return table[name], "table"
    if prompt and TASK in prompt:
        return (prompt.replace(TASK, task), "task in data.prompt") if task else (None, "")
    return (task, "task") if task else (prompt, "data.prompt")


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
        video, caption = pick(row, VIDEO_COLUMNS), pick(row, CAPTION_COLUMNS)
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


def read_lines(file: Path) -> list[Any]:
    """Return the values of a JSONL file. Raises: ValueError, RecursionError."""
    text = read_text(file).removeprefix("\ufeff")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _rows(file: Path) -> list[Any]:
    if file.suffix.lower() in (".jsonl", ".ndjson", ".json"):
        return read_lines(file)
    text = file.read_text(encoding="utf-8-sig")
    return list(csv.DictReader(text.splitlines(keepends=True)))


def pick(record: object, names: tuple[str, ...]) -> str | None:
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
