"""A function in a process of its own: whatever it does to that process, the caller goes on."""

import os
import pickle
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, BinaryIO, NoReturn

from hydra_plugins.cosmos_launchers._jobs import INTERRUPTED_CODE, PREEMPTED_CODE

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
Handlers = dict[signal.Signals, Any]


class Ended(Exception):
    """The process ended without a result; a negative exit code is that of a signal."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(exit_code)

    def __str__(self) -> str:
        if self.exit_code in (INTERRUPTED_CODE, PREEMPTED_CODE):
            return "stopped by a signal"
        if self.exit_code >= 0:
            return f"ended with exit code {self.exit_code} and without a word"
        name = signal.Signals(-self.exit_code).name
        return f"killed by {name}" + ("; likely out of memory" if name == "SIGKILL" else "")


class Children:
    """Runs functions one after the other; signals that arrive here go to the running one too.

    Forked, not started anew: the launcher's process has loaded neither torch nor CUDA, so a fork
    of it is as clean as a fresh interpreter, and has the task, its config and Hydra's state.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None  # the first that arrived
        self.pid: int | None = None
        self.before: Handlers = {}

    def run(self, function: Callable[[], Any]) -> Any:
        """Return what the function returns, pickled on the way.

        Raises: Ended if its process ends without a result.
        """
        # a file, not a pipe: processes that the function leaves behind cannot hold it open
        with tempfile.TemporaryFile() as file:
            sys.stdout.flush()
            sys.stderr.flush()
            signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
            self.pid = os.fork()
            if self.pid == 0:
                self._run_here(function, file)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
            _, status = os.waitpid(self.pid, 0)
            self.pid = None
            file.seek(0)
            content = file.read()
        code = os.waitstatus_to_exitcode(status)
        if code != 0 or not content:
            raise Ended(code)
        return pickle.loads(content)

    def _run_here(self, function: Callable[[], Any], file: BinaryIO) -> NoReturn:
        code = 1
        try:
            os.setsid()  # a terminal's Ctrl-C comes once, through the launcher
            _install(self.before)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
            file.write(pickle.dumps(function()))
            file.flush()
            code = 0
        except KeyboardInterrupt:
            code = INTERRUPTED_CODE
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException as error:  # noqa: BLE001 (this process ends here)
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)
        if self.pid:
            os.kill(self.pid, number)


@contextmanager
def children() -> Iterator[Children]:
    """Yield what runs functions; the former signal handlers come back at the end."""
    running = Children()
    running.before = {number: signal.getsignal(number) for number in FORWARDED}
    _install(dict.fromkeys(FORWARDED, running._handle))
    try:
        yield running
    finally:
        _install(running.before)


def _install(handlers: Handlers) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
