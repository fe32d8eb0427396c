"""A rank: a fresh interpreter that calls the task function and leaves a record of how it ended.

`python -m hydra_plugins.cosmos_launchers._worker FOLDER PARENT`, started by torch's agent, which
has set RANK and the rest. Its exit code is 0 also when it was asked to stop: at any other, torch
would end the ranks beside it while they save.
"""

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from hydra_plugins.cosmos_launchers import _payload, _process, _result
from hydra_plugins.cosmos_launchers._agent import node_name
from hydra_plugins.cosmos_launchers._jobs import INTERRUPTED_CODE, PREEMPTED_CODE
from hydra_plugins.cosmos_launchers._result import (
    FAILED,
    OK,
    PREEMPTED,
    Record,
)

STDOUT, STDERR = 1, 2


def main() -> int:
    """Run the task on this rank and return its exit code."""
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    _process.end_with_parent(parent)
    rank = int(os.environ["RANK"])
    _write_to(_result.log_of(folder.parent / "logs", rank))
    _stop_at_once(folder)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _process.ASKING)
    try:
        payload = _payload.load(folder)
        os.chdir(payload.working_directory)
        record = _run(payload)
    except KeyboardInterrupt:
        record = _stopped(signal.SIGINT)
    # what is left to do must not be disturbed
    for number in _process.ASKING:
        signal.signal(number, signal.SIG_IGN)
    try:
        _result.write(folder / f"rank_{rank:05}.pkl", record)
    except Exception as error:  # noqa: BLE001 (this process ends here)
        text = f"the result cannot be pickled: {type(error).__name__}: {error}"
        record = _record(FAILED, text, exit_code=1)
        _result.write(folder / f"rank_{rank:05}.pkl", record)
    sys.stdout.flush()
    sys.stderr.flush()
    return record.exit_code if record.status == FAILED else 0


def _run(payload: _payload.Payload) -> Record:
    try:
        value = payload.task_function(payload.config)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        text = stop.code if isinstance(stop.code, str) else f"ended with exit code {code}"
        return _record(OK) if code == 0 else _of_code(text, code, is_everywhere=False)
    except Exception as error:  # noqa: BLE001 (this process ends here)
        if hasattr(error, "exit_code"):  # it speaks for itself
            is_everywhere = getattr(error, "is_everywhere", False)
            return _of_code(str(error), int(error.exit_code), is_everywhere)
        traceback.print_exc()
        first = str(error).partition("\n")[0]
        text = f"{type(error).__name__}: {first}".rstrip(": ")
        return _record(FAILED, text, exit_code=1)
    return _record(OK, value=value if os.environ["RANK"] == "0" else None)


def _of_code(text: str, code: int, is_everywhere: bool) -> Record:
    if code in (PREEMPTED_CODE, INTERRUPTED_CODE):
        return _record(PREEMPTED, text, code, is_everywhere=True)
    return _record(FAILED, text, code, is_everywhere)


def _record(
    status: str,
    error: str = "",
    exit_code: int = 0,
    is_everywhere: bool = False,
    value: Any = None,
) -> Record:
    return Record(
        rank=int(os.environ["RANK"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
        host=node_name(),
        status=status,
        error=error,
        exit_code=exit_code,
        is_everywhere=is_everywhere,
        value=value,
        ended_s=time.time(),
    )


def _stopped(number: int) -> Record:
    is_interrupt = number == signal.SIGINT
    text = "interrupted" if is_interrupt else f"stopped by {signal.Signals(number).name}"
    code = INTERRUPTED_CODE if is_interrupt else PREEMPTED_CODE
    return _record(PREEMPTED, f"{text}; the same command goes on from here", code, True)


def _stop_at_once(folder: Path) -> None:
    """Leave at a signal; a task that has something to save installs its own handlers."""

    def handle(number: int, frame: FrameType | None) -> NoReturn:
        record = _stopped(number)
        _result.write(folder / f"rank_{record.rank:05}.pkl", record)
        # no exception, which what it interrupts might swallow
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, handle)


def _write_to(log: Path) -> None:
    """Append output to this rank's log, under a line that says which attempt it is of."""
    with log.open("ab", buffering=0) as file:
        if file.tell():
            file.write(time.strftime("\n== started %Y-%m-%d %H:%M:%S ==\n").encode())
        for descriptor in (STDOUT, STDERR):
            os.dup2(file.fileno(), descriptor)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


if __name__ == "__main__":
    sys.exit(main())
