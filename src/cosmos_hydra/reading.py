"""Files that somebody else may have written: read with limits, and never out of their folder.

What is wrong with one is a ValueError or an OSError here; callers say which file of the user's it
was. JSON that must not change carries a seal, the sha256 of its own text.
"""

import hashlib
import json
import os
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

MAX_JSON_BYTES = 256 << 20
# many small values take twenty times their text; this bounds them to a gigabyte
MAX_JSON_VALUES = 8_000_000
MAX_HEADER_BYTES = 4 << 20  # thirty thousand tensors; the largest model here has a thousand
MAX_NAME = 255
MAX_LISTED = 20
SEAL = "sha256"
UNSEALED = "0" * 64


def shown(value: object) -> str:
    """Return a foreign value fit for a message: one line, plain characters, not long."""
    text = str(value) if isinstance(value, (str, Exception)) else reprlib.repr(value)
    escaped = ascii(text)[1:-1]
    return escaped if len(escaped) <= 100 else f"{escaped[:100]}..."


def listed(problems: list[str]) -> str:
    """Return what is wrong as one line, which is not long."""
    more = len(problems) - MAX_LISTED
    return "; ".join([*problems[:MAX_LISTED], *([f"and {more} more"] if more > 0 else [])])


def size_of(path: Path) -> int:
    """Return a file's size in bytes. Raises: ValueError for what is no file, as a pipe."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("no regular file")
    return status.st_size


def read_text(path: Path) -> str:
    """Return the text of a file of at most MAX_JSON_BYTES."""
    if size_of(path) > MAX_JSON_BYTES:
        raise ValueError(f"larger than {MAX_JSON_BYTES >> 20} MB")
    return path.read_text(encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; every JSON file here is one."""
    return _parse(read_text(path))


def _parse(text: str) -> dict[str, Any]:
    if sum(text.count(mark) for mark in ",[{") > MAX_JSON_VALUES:
        raise ValueError(f"more than {MAX_JSON_VALUES} values")
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def sealed(content: dict[str, Any]) -> bytes:
    """Return JSON whose first value is the sha256 of the whole text with zeros in its place."""
    text = json.dumps({SEAL: UNSEALED, **content}, indent=2) + "\n"
    return text.replace(UNSEALED, _digest(text), 1).encode()


def read_sealed(path: Path) -> dict[str, Any]:
    """Return a JSON object that `sealed` wrote, or one without a seal as it is.

    Raises: ValueError also when a single character has changed.
    """
    text = read_text(path)
    content = _parse(text)
    seal = content.get(SEAL)
    if seal is not None and _digest(text.replace(str(seal), UNSEALED, 1)) != seal:
        raise ValueError("it has changed since it was written")
    return content


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def plain_name(name: object) -> str:
    """Return the name of a file, without folders. Raises: ValueError when it is anything else."""
    if not isinstance(name, str) or len(_parts(name)) != 1:
        raise ValueError(f"{shown(name)} is no plain file name")
    return name


def contained(folder: Path, name: object) -> Path:
    """Return the path of a file named relative to a folder, which it does not leave.

    Links that lead elsewhere are refused, except those of a Hugging Face Hub cache to its blobs.
    Raises: ValueError.
    """
    if not isinstance(name, str) or not _parts(name):
        raise ValueError(f"{shown(name)} is no name of a file below the folder")
    root, target = (Path(os.path.realpath(path)) for path in (folder, folder / name))
    if not any(target.is_relative_to(place) for place in (root, *_blobs(root))):
        raise ValueError(f"{shown(name)} is a link that leads out of the folder")
    return folder / name


def _parts(name: str) -> tuple[str, ...]:
    """Return the parts of a relative path written the plain way, or nothing."""
    path = PurePosixPath(name)
    is_plain = name == path.as_posix() and name.isprintable() and "\\" not in name
    is_plain = is_plain and len(name) <= MAX_NAME
    return () if not is_plain or path.is_absolute() or ".." in path.parts else path.parts


def _blobs(root: Path) -> list[Path]:
    """Return where a Hub cache keeps the content of the snapshot that a folder is or lies in."""
    above = [root, *root.parents]
    return [one.parent.parent / "blobs" for one in above if one.parent.name == "snapshots"]


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Yield an open safetensors file. Raises: ValueError when its header or its length is wrong."""
    _check_header(path, size_of(path))
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(shown(error)) from error


def read_tensors(path: Path) -> dict[str, Any]:
    """Return all tensors of a safetensors file, on the CPU."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def _check_header(path: Path, size_bytes: int) -> None:
    """Refuse what safetensors itself takes: a header that takes seconds, a name given twice."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > min(MAX_HEADER_BYTES, size_bytes - 8):
            raise ValueError(f"a header of {header_bytes} bytes in a file of {size_bytes}")
        header = file.read(header_bytes)
    try:
        json.loads(header, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name given twice")
    return content
