"""Processes that end with the one that started them, and signals that wait until they are heard."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# Ctrl-C, scancel and preemption, preemption with a warning, a closed terminal
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, as of now, ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@contextmanager
def signals_waiting() -> Iterator[None]:
    """Hold signals back, in this thread and in processes started by it, which inherit that.

    A signal that comes while one of them imports its modules is not lost, nor kills it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)


def start_module(
    module: str, *arguments: str, folder: Path, output: IO[bytes]
) -> "subprocess.Popen[bytes]":
    """Start a module of this package in a session of its own; signals wait until it wants them.

    -m lets modules of the working directory go first, so that is a folder without any.
    """
    with signals_waiting():
        return subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.{module}", *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=environment(),
        )


def environment() -> dict[str, str]:
    """Return this process's environment, with modules found where it finds them."""
    path = (str(Path(entry).absolute()) for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def children() -> list[int]:
    """Return the processes that this one's main thread has started and that still run."""
    here = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    return [int(pid) for pid in here.read_text().split()]


def send(number: int, pids: list[int]) -> None:
    """Send a signal to those that still are."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
