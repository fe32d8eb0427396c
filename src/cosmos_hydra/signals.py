"""What SIGTERM and SIGUSR2 (preemption) and Ctrl-C do.

Where nothing can be lost a signal ends the program at once; a training loop asks for a flag
instead and stops at its next safe point. Imports nothing slow: it is in force from the start.
"""

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

PREEMPTING = (signal.SIGTERM, signal.SIGUSR2)
STOPPING = (signal.SIGINT, *PREEMPTING)
BURST_S = 1.0  # schedulers send several at once
INTERRUPTED, PREEMPTED = 130, 75  # exit codes


class Stopped(BaseException):
    """A preempting signal came where the program can end at once.

    Like KeyboardInterrupt no Exception, so that no library takes it for a failure of its own.
    """


def stop_at_once() -> None:
    """Make preempting signals raise Stopped in the main thread, several at once only one."""
    last_s = -math.inf

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal last_s
        if time.monotonic() - last_s > BURST_S:
            last_s = time.monotonic()
            raise Stopped(signal.Signals(number).name)

    for number in PREEMPTING:
        signal.signal(number, handle)


def ignore_all() -> None:
    """Let nothing interrupt what is left to do: the exit code is decided."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def ending_in_one_line() -> Iterator[None]:
    """End the program when Ctrl-C or Stopped arrive here: a line on stderr, exit code 130 or 75."""
    try:
        yield
    except KeyboardInterrupt:
        _end("interrupted", INTERRUPTED)
    except Stopped as stopped:
        _end(f"stopped by {stopped}", PREEMPTED)


def _end(reason: str, code: int) -> NoReturn:
    ignore_all()
    with suppress(OSError):  # the terminal may be gone
        sys.stderr.write(f"cosmos-hydra: {reason}; the same command goes on from here\n")
    sys.exit(code)


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
