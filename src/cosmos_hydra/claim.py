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

    Raises: StageError naming the process that holds it.
    """
    is_told = False
    made = [folder for folder in (lock.parent, *lock.parent.parents) if not folder.exists()]
    while True:
        with _open(lock) as file:
            try:
                # the kernel releases it at any kind of death; network file systems pass it on
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not is_patient:
                    raise StageError(f"{name} is in use by {_owner(lock)}{ADVICE}") from None
                if not is_told:
                    logger.info(f"waiting: {name} is in use by {_owner(lock)}")
                is_told = True
                time.sleep(POLL_S)
                continue
            except OSError:
                logger.warning(f"{lock.parent} has a file system without locks: run one process")
            if not _is(lock, file.fileno()):
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


def _open(lock: Path) -> TextIO:
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


def _is(path: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def _sign(descriptor: int) -> None:
    owner = {"host": socket.gethostname(), "pid": os.getpid()}
    job = os.environ.get("SLURM_JOB_ID")
    content = json.dumps({**owner, **({"slurm_job": job} if job else {})})
    os.ftruncate(descriptor, 0)
    os.write(descriptor, content.encode())


def _owner(lock: Path) -> str:
    try:
        owner = json.loads(lock.read_text())
        job = f", Slurm job {owner['slurm_job']}" if "slurm_job" in owner else ""
        return f"process {owner['pid']} on {owner['host']}{job}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
