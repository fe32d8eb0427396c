"""Crash-safe writes: temporary name, flush, fsync, rename, fsync of the folder.

Everything that must survive a kill is written through here, its manifest last.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from cosmos_hydra.errors import storage_errno

LOCK = ".lock"
TEMPORARY_SUFFIX = ".tmp"
# temporary names of `write_with`, and those that safetensors writes to before it renames
LEFTOVER = re.compile(r"\..+\.\d+\.tmp(\.\w+)?|\.tmp\w{6}")
UMASK = os.umask(0)
os.umask(UMASK)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn an error of the disk, whichever library met it, into an OSError that names `path`."""
    try:
        yield
    except Exception as error:
        number = storage_errno(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def sync(path: Path) -> None:
    """Block until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Create `path` by calling `write` on a temporary name beside it, then renaming.

    Readers see the old file or the new one, never half of it.
    """
    # the suffix of the target stays last, since some writers look at it
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{TEMPORARY_SUFFIX}{path.suffix}")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            _open_to_readers(temporary)
            sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes crash-safely."""
    write_with(path, lambda temporary: temporary.write_bytes(content))


def write_json(path: Path, content: Any) -> None:
    """Write JSON crash-safely; keys keep their order."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def temporary_of(folder: Path) -> Path:
    """Return the name that `new_folder` gives a folder until it is whole."""
    return folder.with_name(f"{folder.name}{TEMPORARY_SUFFIX}")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends without an error.

    An existing `path` is replaced. A folder that a kill left behind ends in `.tmp`.
    """
    temporary = temporary_of(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _open_to_readers(file)
            sync(file)
        sync(temporary)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync(path.parent)


def remove_leftovers(*folders: Path, prefix: str = ".") -> None:
    """Remove the temporary files that a kill left right in these folders, if they exist.

    For whoever has claimed them: nobody else may be writing a file with this prefix there.
    """
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name.startswith(prefix) and LEFTOVER.fullmatch(path.name):
                path.unlink()


def _open_to_readers(file: Path) -> None:
    """Give a file the permissions that the user's umask asks for; safetensors makes it private."""
    file.chmod(0o666 & ~UMASK)


def sha256_of(path: Path) -> str:
    """Return the hex digest of a file's content, reading an unchanged file once a process."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _sha256(path: Path, size_bytes: int, modified_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_json(content: Any) -> str:
    """Return the hex digest of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
