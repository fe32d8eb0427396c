"""What the launcher's process, or the task that Slurm starts on a node, does with its agent."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hydra_plugins.cosmos_launchers import _process
from hydra_plugins.cosmos_launchers._payload import Payload

WAIT_S = 0.2


class Asked:
    """Which signals have asked to stop."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.forward: Callable[[int], None] = lambda number: None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note a signal and pass it on."""
        self.numbers.append(number)
        self.forward(number)

    @property
    def first(self) -> int | None:
        return self.numbers[0] if self.numbers else None


@contextmanager
def noting_signals() -> Iterator[Asked]:
    """Yield what notes signals; the former handlers come back at the end."""
    asked = Asked()
    before: dict[int, Any] = {n: signal.signal(n, asked.handle) for n in _process.ASKING}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_agent(
    folder: Path,
    payload: Payload,
    asked: Asked,
    node: int = 0,
    host: str = "localhost",
    port: int = 0,
    look: Callable[[], object] = lambda: None,
) -> int:
    """Run the ranks of this node and return the exit code of their agent.

    Signals go on to it; `look` is called now and then.
    """
    arguments = (str(folder), str(node), host, str(port), str(os.getpid()))
    with (payload.logs / f"node_{node:02}.log").open("ab") as output:
        agent = _process.start_module("_agent", *arguments, folder=folder, output=output)
    asked.forward = agent.send_signal
    if asked.first is not None:  # before it was there
        agent.send_signal(asked.first)
    while True:
        try:
            return agent.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            look()


class Follower:
    """Shows what the ranks of a job print, as it comes."""

    def __init__(self, logs: list[Path]) -> None:
        # what earlier commands left there is not shown
        self.places = {log: log.stat().st_size if log.is_file() else 0 for log in logs}

    def look(self) -> None:
        """Show what is new."""
        for log, place in self.places.items():
            if not log.is_file():
                continue
            with log.open("rb") as file:
                file.seek(place)
                new = file.read()
            if new:
                self.places[log] = place + len(new)
                sys.stdout.write(new.decode(errors="replace"))
                sys.stdout.flush()
