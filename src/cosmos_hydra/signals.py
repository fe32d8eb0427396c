"""What SIGTERM and SIGUSR2 (preemption) and Ctrl-C do.

Where nothing can be lost a signal ends the program at once; a training loop asks for a flag
instead and stops at its next safe point. Imports nothing slow: it is in force from the start.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from cosmos_hydra.place import is_first

PREEMPTING = (signal.SIGTERM, signal.SIGUSR2)
STOPPING = (signal.SIGINT, *PREEMPTING)
INTERRUPTED, PREEMPTED = 130, 75  # exit codes
STDERR = 2
SPEAKING_S = 10.0  # where nobody ends the other ranks


def stop_at_once() -> None:
    """Make preempting signals end the process with a line on stderr and exit code 75.

    No exception, which what it interrupts would swallow now and then (imports, weak references);
    what is on disk is whole, and what is half done is swept away by the next who claims it.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):  # the terminal may be gone
            if is_first():
                os.write(STDERR, _farewell(f"stopped by {signal.Signals(number).name}").encode())
        os._exit(PREEMPTED)

    for number in PREEMPTING:
        signal.signal(number, handle)


@contextmanager
def ending_when_interrupted() -> Iterator[None]:
    """End the program when Ctrl-C arrives here: a line on stderr and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        ignore_all()
        with suppress(OSError):
            if is_first():
                sys.stderr.write(_farewell("interrupted"))
        sys.exit(INTERRUPTED)


def _farewell(reason: str) -> str:
    return f"cosmos-hydra: {reason}; the same command goes on from here\n"


def leave_after_the_first() -> None:
    """Wait for the end that comes when rank 0, which is about to say why, has ended.

    Whoever started the ranks ends all when one ends, and would end rank 0 before it has spoken.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL)
    time.sleep(SPEAKING_S)


def ignore_all() -> None:
    """Let nothing interrupt what is left to do: the exit code is decided."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


class StopAsked(Exception):
    """Leave work that can be left half done: a validation, a preview."""


class StopRequest:
    """Whether a stop was asked for, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the signal; a second Ctrl-C interrupts at once."""
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def check(self) -> None:
        """Raise StopAsked if a stop was asked for."""
        if self:
            raise StopAsked


@contextmanager
def stop_on_request() -> Iterator[StopRequest]:
    """Yield the flag that signals set; the former handlers come back at the end. Main thread only.

    Whoever uses it looks at the flag once more after the block.
    """
    request = StopRequest()
    before = {number: signal.signal(number, request.handle) for number in STOPPING}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
