"""One file from the Hub into its cache: resumed where it was cut, and never taken unverified.

Content goes into `blobs/HASH.incomplete`; it becomes `blobs/HASH` when the hash is that of the
Hub's list, and the snapshot gets a link to it, as the Hub's own tools lay it out.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from threading import Event

from cosmos_hydra import files
from cosmos_hydra.errors import StageError
from cosmos_hydra.hub import client
from cosmos_hydra.hub.access import PARTIAL_SUFFIX
from cosmos_hydra.hub.client import HubFile

FETCHES = 2  # of a file that comes with wrong content


class Stopped(Exception):
    """The work is given up: the program ends, or another file failed."""


@dataclass(frozen=True)
class Target:
    """A file, where its content is, and where it belongs: a blob and the link of a snapshot."""

    file: HubFile
    url: str
    blob: Path
    link: Path


@dataclass(frozen=True)
class Watcher:
    """Who is told of bytes that came (or had to be given up) and of pauses, and can say stop."""

    count: Callable[[int], None]
    note: Callable[[str], None]
    stop: Event


class Digest:
    """The hashes of a file's content as it comes: sha256, and the one of git."""

    def __init__(self, file: HubFile) -> None:
        self.file = file
        self.restart()

    def restart(self) -> None:
        """Forget the content."""
        self.size, self.sha256 = 0, hashlib.sha256()
        self.git = hashlib.sha1(b"blob %d\0" % self.file.size, usedforsecurity=False)

    def add(self, chunk: bytes) -> None:
        """Go on with the next bytes."""
        self.size += len(chunk)
        self.sha256.update(chunk)
        if self.file.sha256 is None:
            self.git.update(chunk)

    def read(self, source: FileIO | BufferedReader) -> None:
        """Go on with what is left of an open file."""
        while chunk := source.read(client.CHUNK_BYTES):
            self.add(chunk)

    @property
    def is_right(self) -> bool:
        """Return whether it is the content that the Hub lists."""
        found = self.git if self.file.sha256 is None else self.sha256
        return self.size == self.file.size and found.hexdigest() == self.file.blob


def bring(target: Target, watcher: Watcher) -> str:
    """Have a file in the cache, verified, and return its sha256.

    Raises: StageError when the content that comes is not what the Hub lists; Stopped; what
    huggingface_hub raises once attempts are used up.
    """
    if target.blob.is_file():
        digest = Digest(target.file)
        with target.blob.open("rb") as source:
            digest.read(source)
        if digest.is_right:
            _link(target)
            return digest.sha256.hexdigest()
        target.blob.unlink()
        watcher.note(f"{target.file.path} is damaged in the cache; fetching it again")
    for _ in range(FETCHES):
        digest = _receive(target, watcher)
        if digest.is_right:
            _link(target)
            return digest.sha256.hexdigest()
        watcher.count(-digest.size)
    raise StageError(
        f"{target.file.path} comes with other content than the Hub lists for it, {FETCHES} times; "
        f"look at HF_ENDPOINT and at the proxy, then run the same command"
    )


def _receive(target: Target, watcher: Watcher) -> Digest:
    """Fetch what is missing, and make it the blob if it is right, else remove it."""
    file, digest = target.file, Digest(target.file)
    partial = target.blob.with_name(f"{target.blob.name}{PARTIAL_SUFFIX}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("ab+", buffering=0) as out:
        out.seek(0)
        digest.read(out)
        pauses_s = iter(client.PAUSES_S)
        furthest = digest.size
        while digest.size < file.size:
            try:
                _append(target, out, digest, watcher)
            except client.NETWORK as error:
                if digest.size > furthest:
                    furthest, pauses_s = digest.size, iter(client.PAUSES_S)
                pause_s = next(pauses_s, None)
                if pause_s is None or not client.is_passing(error):
                    raise
                pause_s = max(pause_s, client.pause_asked_s(error))
                watcher.note(f"{client.described(error)}; trying again in {pause_s:.0f} s")
                if watcher.stop.wait(pause_s):
                    raise Stopped from error
    if digest.is_right:
        files.sync(partial)
        partial.replace(target.blob)
        files.sync(target.blob.parent)
    else:
        partial.unlink()
    return digest


def _append(target: Target, out: FileIO, digest: Digest, watcher: Watcher) -> None:
    """Fetch from where the file ends to its end. Raises: ConnectionError when it ends earlier."""
    with client.open_content(target.url, digest.size) as (start, chunks):
        if start < digest.size:  # whoever answers does not know ranges
            out.truncate(0)
            watcher.count(-digest.size)
            digest.restart()
        for chunk in chunks:
            if watcher.stop.is_set():
                raise Stopped
            with files.naming(Path(out.name)):
                _write(out, chunk)
            digest.add(chunk)
            watcher.count(len(chunk))
            if digest.size > target.file.size:
                return
    if digest.size < target.file.size:
        raise ConnectionError("the content ended early")


def _write(out: FileIO, chunk: bytes) -> None:
    """Write all of a chunk; nothing stays in a buffer, whose failure would come later."""
    left = memoryview(chunk)
    while left:
        left = left[out.write(left) :]


def _link(target: Target) -> None:
    """Make the snapshot's link to the blob; where the disk knows no such links, a hard one."""
    link, blob = target.link, target.blob
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(os.path.relpath(blob, link.parent))
    except OSError:
        link.hardlink_to(blob)
