"""One process a folder: a lock that its owner's death releases, whatever killed it.

Who comes second is refused; the jobs of a sweep, which may want the same samples, wait instead.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from cosmos_hydra import files
from cosmos_hydra.errors import StageError

ADVICE = "; wait for it to end, or choose another folder"
POLL_S = 0.5
is_patient = False
logger = logging.getLogger(__name__)


class InUse(StageError):
    """Another process holds what is asked for."""


@contextmanager
def waiting_for_others() -> Iterator[None]:
    """Have `claim` wait for another owner to end."""
    global is_patient
    is_patient = True
    try:
        yield
    finally:
        is_patient = False


@contextmanager
def claim(lock: Path, name: str) -> Iterator[None]:
    """Hold what the file `lock` stands for; `name` says in a message what that is.

    Raises: InUse naming the process that holds it.
    """
    is_told = False
    made = [folder for folder in (lock.parent, *lock.parent.parents) if not folder.exists()]
    while True:
        with open_lock(lock) as file:
            try:
                # the kernel releases it at any kind of death; network file systems pass it on
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not is_patient:
                    raise InUse(f"{name} is in use by {_owner(lock)}{ADVICE}") from None
                if not is_told:
                    logger.info(f"waiting: {name} is in use by {_owner(lock)}")
                is_told = True
                time.sleep(POLL_S)
                continue
            except OSError:
                logger.warning(f"{lock.parent} has a file system without locks: run one process")
            if not is_file_of(lock, file.fileno()):
                continue  # its former owner removed the file in between
            try:
                with files.naming(lock):
                    _sign(file.fileno())
                yield
            finally:
                lock.unlink(missing_ok=True)
                with suppress(OSError):  # a folder that holds something stays
                    for folder in made:
                        folder.rmdir()
            return


def open_lock(lock: Path) -> TextIO:
    """Return a lock file and its folder, made where missing. Raises: StageError for a link."""
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            # signing it must not overwrite what a link, found in somebody's folder, leads to
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            continue  # a former owner removed the folder in between
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise StageError(f"{lock} is a link; remove it") from None
        return os.fdopen(descriptor, "r+")


def is_file_of(path: Path, descriptor: int) -> bool:
    """Return whether a path still names the file that is open."""
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def signature() -> bytes:
    """Return who this process is, for `owner_in`."""
    owner = {"host": socket.gethostname(), "pid": os.getpid()}
    job = os.environ.get("SLURM_JOB_ID")
    return json.dumps({**owner, **({"slurm_job": job} if job else {})}).encode()


def _sign(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, signature())


def _owner(lock: Path) -> str:
    try:
        return owner_in(lock.read_text())
    except (OSError, ValueError):
        return owner_in("")


def owner_in(text: str) -> str:
    """Return in words whom a signature names."""
    try:
        owner = json.loads(text)
        job = f", Slurm job {owner['slurm_job']}" if "slurm_job" in owner else ""
        return f"process {owner['pid']} on {owner['host']}{job}"
    except (ValueError, KeyError, TypeError):
        return "another process"
