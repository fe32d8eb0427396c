"""How processes, also of several hosts, share the work in one folder: locks on bytes of one file.

The first byte is the folder: locked for one process while it plans, shared by all that work by its
plan. Then comes who planned, a byte for each group of work, locked while somebody is at it and 1
when it is made, and last what could not be made. The kernel frees the locks of a process at any
kind of death. They are POSIX locks: forked decoders do not inherit them, network file systems pass
them on, and taking one refreshes what the host has cached of the file.
"""

import errno
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Generic, TextIO, TypeVar

from cosmos_hydra.claim import is_file_of, open_lock, owner_in, signature

T = TypeVar("T")
FOLDER, REPORTS = 0, 1  # bytes that stand for something else than a group
OWNER_BYTES = 256
MADE = b"\1"
POLL_S = 0.2
HELD_ELSEWHERE = (errno.EAGAIN, errno.EACCES)
logger = logging.getLogger(__name__)


class Ledger:
    """The lock file of a folder; opened by `enter`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: TextIO | None = None
        self.num_groups = 0
        self._made_folders: list[Path] = []

    @property
    def _descriptor(self) -> int:
        assert self.file is not None
        return self.file.fileno()

    def enter(self) -> bool | None:
        """Return True when nobody else is here, False beside others, None while somebody plans."""
        if self.file is None:
            parents = (self.path.parent, *self.path.parent.parents)
            self._made_folders += [folder for folder in parents if not folder.exists()]
            self.file = open_lock(self.path)
        is_alone = self._lock(fcntl.LOCK_EX, FOLDER)
        if is_alone or self._lock(fcntl.LOCK_SH, FOLDER):
            if is_file_of(self.path, self._descriptor):
                return is_alone
            self.leave()  # the last one before removed the file in between
        return None

    def join(self, num_groups: int) -> None:
        """Enter beside the process that planned and told this one."""
        self.num_groups = num_groups
        while self.enter() is None:
            self.leave()
            time.sleep(POLL_S)

    def leave(self) -> None:
        """Let go of everything, for another try."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def close(self) -> None:
        """Let go of everything; the last process removes the file."""
        if self.file is not None:
            with suppress(OSError):
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN)
            is_last = self._lock(fcntl.LOCK_EX, FOLDER)
            if is_last and is_file_of(self.path, self._descriptor):
                self.path.unlink(missing_ok=True)
            self.leave()
        with suppress(OSError):  # a folder that holds something stays
            for folder in self._made_folders:
                folder.rmdir()

    def sign(self) -> None:
        """Say who is planning; for whoever is alone."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, signature().ljust(OWNER_BYTES), 0)

    @property
    def owner(self) -> str:
        """Return who planned, in words."""
        return owner_in(os.pread(self._descriptor, OWNER_BYTES, 0).decode(errors="replace"))

    def share(self, made: Sequence[bool]) -> None:
        """Let others in, given which groups are made already; for whoever is alone."""
        self.num_groups = len(made)
        os.pwrite(self._descriptor, b"".join(MADE if one else b"\0" for one in made), OWNER_BYTES)
        self._lock(fcntl.LOCK_SH, FOLDER)

    def take(self, group: int) -> bool:
        """Return whether nobody else is at a group, which from now on is this process's."""
        return self._lock(fcntl.LOCK_EX, OWNER_BYTES + group)

    def free(self, group: int) -> None:
        self._free(OWNER_BYTES + group)

    def is_made(self, group: int) -> bool:
        """Return whether a group is made; right only for a group that is taken."""
        return os.pread(self._descriptor, 1, OWNER_BYTES + group) == MADE

    def mark(self, group: int) -> None:
        """Note that a group that is taken is made, and free it."""
        os.pwrite(self._descriptor, MADE, OWNER_BYTES + group)
        self.free(group)

    def report(self, video: str, reason: str) -> None:
        """Tell all that a video cannot be used."""
        with self._reports() as first:
            content = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, first)
            # a line of its own, also behind one that a kill cut off
            line = f"\n{json.dumps([video, reason])}\n".encode()
            os.pwrite(self._descriptor, line, first + len(content))

    def reported(self) -> dict[str, str]:
        """Return the videos that cannot be used, with the reason that came first."""
        found: dict[str, str] = {}
        with self._reports() as first:
            content = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, first)
        for line in content.decode(errors="replace").splitlines():
            with suppress(ValueError):
                video, reason = json.loads(line)
                found.setdefault(video, reason)
        return found

    @contextmanager
    def _reports(self) -> Iterator[int]:
        with suppress(OSError):  # a file system without locks, which was warned about
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, REPORTS)
        try:
            yield OWNER_BYTES + self.num_groups
        finally:
            self._free(REPORTS)

    def _free(self, byte: int) -> None:
        with suppress(OSError):
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, byte)

    def _lock(self, kind: int, byte: int) -> bool:
        try:
            fcntl.lockf(self._descriptor, kind | fcntl.LOCK_NB, 1, byte)
        except OSError as error:
            if error.errno in HELD_ELSEWHERE:
                return False
            if byte == FOLDER:
                folder = self.path.parent
                logger.warning(f"{folder} has a file system without locks: run one process")
        return True


class Shares(Generic[T]):
    """Groups of items that all processes work through, each item made by one of them.

    `first` is the number of the first group in the ledger; `is_made` says whether an item is on
    disk. Groups are numbered the same in every process.
    """

    def __init__(
        self,
        ledger: Ledger,
        first: int,
        groups: Sequence[Sequence[T]],
        is_made: Callable[[T], bool],
    ) -> None:
        self.ledger, self.is_made = ledger, is_made
        self.waiting = dict(enumerate(groups, first))
        self.held: dict[int, Sequence[T]] = {}

    def work(self, make: Callable[[Iterator[T]], None]) -> None:
        """Have `make` make what nobody else does; return when every group is made.

        `make` gets items as they are claimed, may read ahead, and returns when all it got are
        written. It is called again when somebody died and left a group behind.
        """
        while self.waiting:
            items = self._claim()
            for item in items:
                make(chain([item], items))
            self._settle(is_over=True)
            if self.waiting:
                time.sleep(POLL_S)

    def _claim(self) -> Iterator[T]:
        for number, group in list(self.waiting.items()):
            if not self.ledger.take(number):
                continue
            del self.waiting[number]
            if self.ledger.is_made(number):
                self.ledger.free(number)
                continue
            self.held[number] = group
            yield from (item for item in group if not self.is_made(item))
            self._settle()

    def _settle(self, is_over: bool = False) -> None:
        """Mark the groups that are written, in order, as far as they are."""
        for number, group in list(self.held.items()):
            if not is_over and not all(map(self.is_made, group)):
                return
            self.ledger.mark(number)
            del self.held[number]
