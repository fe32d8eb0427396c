"""Seconds that the stages of preprocessing take, on the host and on the device."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

import torch

Item = TypeVar("Item")


class Spent:
    """Seconds spent in each stage, of all threads together; those of the GPU by its own clock."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock = Lock()

    def add(self, stage: str, seconds: float) -> None:
        """Count some more; from any thread."""
        with self._lock:
            self.seconds[stage] += seconds

    @contextmanager
    def on(self, stage: str) -> Iterator[None]:
        """Count what the block takes."""
        began_s = time.perf_counter()
        yield
        self.add(stage, time.perf_counter() - began_s)


def timed(items: Iterable[Item], spent: Spent, stage: str = "decode") -> Iterator[Item]:
    iterator = iter(items)
    while True:
        with spent.on(stage):
            item = next(iterator, None)
        if item is None:
            return
        yield item


class Clock:
    """When the device gets where it is told to mark the time."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, torch.cuda.Event]] = []
        self.mark("")

    def mark(self, stage: str) -> None:
        """Note the end of a stage."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append((stage, event))

    def read(self) -> Iterator[tuple[str, float]]:
        """Yield stages and their seconds; blocks until the last has ended."""
        self.marks[-1][1].synchronize()
        for (_, before), (stage, event) in zip(self.marks, self.marks[1:], strict=False):
            yield stage, before.elapsed_time(event) / 1000
