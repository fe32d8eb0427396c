"""Fetch the files of some repositories, several at once, and remember each that is verified.

The work is done by daemon threads, which tell this one what happens: Ctrl-C need not wait for an
answer of the Hub, and only one thread shows progress and writes records.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Thread

from cosmos_hydra import files
from cosmos_hydra.errors import GOES_ON, StageError
from cosmos_hydra.hub import client
from cosmos_hydra.hub.access import Repository, explained, size_text
from cosmos_hydra.hub.cache import Record, hub_folder
from cosmos_hydra.hub.client import HubFile
from cosmos_hydra.hub.receive import Stopped, Target, Watcher, bring
from cosmos_hydra.logs import progress

NUM_THREADS = 4
RECORD_INTERVAL_S = 2.0
MEGABYTE = 1_000_000
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A file to bring."""

    repository: Repository
    record: Record
    target: Target


@dataclass(frozen=True)
class Brought:
    """A file that is in the cache and verified."""

    task: Task
    sha256: str


@dataclass(frozen=True)
class Failed:
    """A file that could not be brought."""

    task: Task
    error: Exception


Event_ = int | str | Brought | Failed


def fetch(repositories: list[Repository]) -> None:
    """Bring all wanted files into the cache of the Hub.

    Raises: StageError with what to do; what was fetched by then stays.
    """
    tasks = [
        Task(one, one.record, _target(one.record, file))
        for one in repositories
        if one.record is not None
        for file in one.wanted
    ]
    if not tasks:
        return
    missing_bytes = sum(one.missing_bytes for one in repositories)
    there = sum(task.target.file.size for task in tasks) - missing_bytes
    if there:
        logger.info(f"{size_text(there)} are there already and are verified first")
    new = [record for record in _records(tasks) if not record.files]
    total = max(1, math.ceil(missing_bytes / MEGABYTE))
    with _working(tasks) as events, progress("download", total, "MB") as shown:
        received, left, written_s = 0, len(tasks), time.monotonic()
        try:
            while left:
                match events.get():
                    case int(count):
                        received += count
                        if received // MEGABYTE > shown.done:
                            shown.advance(received // MEGABYTE - shown.done)
                    case str(text):
                        logger.info(text)
                    case Failed(task, error):
                        raise _problem(task, error) from error
                    case Brought(task, sha256):
                        left -= 1
                        file = task.target.file
                        task.record.files[file.path] = {"size": file.size, "sha256": sha256}
                        if time.monotonic() - written_s > RECORD_INTERVAL_S:
                            task.record.write()
                            written_s = time.monotonic()
            if shown.done < total:
                shown.advance(total - shown.done)
        finally:
            for record in _records(tasks):
                record.write()
    for record in new:
        _point_to(record)


@contextmanager
def _working(tasks: list[Task]) -> "Iterator[SimpleQueue[Event_]]":
    """Yield the queue of what the threads tell; they end with the block, or soon after."""
    events: SimpleQueue[Event_] = SimpleQueue()
    todo, stop = deque(tasks), Event()
    watcher = Watcher(events.put, events.put, stop)

    def work() -> None:
        while not stop.is_set():
            try:
                task = todo.popleft()
            except IndexError:
                return
            try:
                events.put(Brought(task, bring(task.target, watcher)))
            except Stopped:
                return
            except Exception as error:  # noqa: BLE001 (raised in the main thread)
                events.put(Failed(task, error))
                return

    threads = [Thread(target=work, daemon=True) for _ in range(min(NUM_THREADS, len(tasks)))]
    for thread in threads:
        thread.start()
    try:
        yield events
    except Exception:
        stop.set()
        for thread in threads:  # what is half fetched is left to the next who comes
            thread.join()
        raise
    finally:
        stop.set()


def _target(record: Record, file: HubFile) -> Target:
    url = client.content_url(record.kind, record.repo, record.commit, file.path)
    blob = hub_folder(record.kind, record.repo) / "blobs" / file.blob
    return Target(file, url, blob, record.snapshot / file.path)


def _records(tasks: list[Task]) -> list[Record]:
    return list({id(task.record): task.record for task in tasks}.values())


def _problem(task: Task, error: Exception) -> Exception:
    """Return a line for what went wrong with one file; anything unexpected as it is."""
    where = f"{task.record.repo}: {task.target.file.path}"
    if isinstance(error, StageError):
        return StageError(f"{task.record.repo}: {error}")
    if not isinstance(error, client.NETWORK) or getattr(error, "filename", None) is not None:
        return error
    if client.is_passing(error) or client.pause_asked_s(error):
        return StageError(f"{where}: {client.described(error)}; {GOES_ON}")
    return StageError(explained(error, task.repository)[1])


def _point_to(record: Record) -> None:
    """Have the branch or tag lead to the commit, as the Hub's own tools expect it."""
    if record.revision != record.commit:
        reference = hub_folder(record.kind, record.repo) / "refs" / record.revision
        files.write_bytes(reference, record.commit.encode())


def verify(record: Record) -> int:
    """Hash every file of a record, forget those that are not as recorded, return their number."""
    wrong = []
    for path, known in record.files.items():
        file = record.snapshot / path
        if file.is_file() and files.sha256_of(file) != known["sha256"]:
            file.resolve().unlink()
            file.unlink(missing_ok=True)
            wrong.append(path)
    for path in wrong:
        logger.warning(f"{record.repo}: {path} has changed since it was verified; it is removed")
        del record.files[path]
    if wrong:
        record.write()
    return len(wrong)
