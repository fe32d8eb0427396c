"""Processes that preprocess the same folder at once, and what each of them did."""

import json
import logging
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRELOADED = ("workers", "cosmos_hydra.data.prepare", "raw_videos")
LIMIT_S = 120.0


@dataclass(frozen=True)
class Worker:
    """What one process is told: overrides, and what befalls it at its n-th sample."""

    name: str
    overrides: tuple[str, ...] = ()
    at: int = 0
    # kill = SIGKILL; wait = until the file `go` is there
    do: str = ""
    # seconds that an encode takes at most, at random
    slow_s: float = 0.0
    # how many begin together
    beside: int = 1


def start(root: Path, workers: Sequence[Worker]) -> list[Any]:
    """Start a process for each worker; those told so begin together."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    processes = [context.Process(target=_work, args=(root, worker)) for worker in workers]
    for process in processes:
        process.start()
    return processes


def finish(processes: Sequence[Any]) -> list[int]:
    """Wait for all and return their exit codes."""
    for process in processes:
        process.join(LIMIT_S)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def encoded(root: Path, name: str) -> list[str]:
    """Return the samples that a worker encoded, also if it was killed."""
    path = root / f"{name}.encoded"
    return path.read_text().split() if path.exists() else []


def told(root: Path, name: str) -> list[str]:
    """Return what a worker logged, and the error that ended it."""
    path = root / f"{name}.told"
    return list(json.loads(path.read_text())) if path.exists() else []


def _work(root: Path, worker: Worker) -> None:
    import torch
    from raw_videos import small_config

    from cosmos_hydra.data.prepare import prepare
    from cosmos_hydra.data.writer import SampleWriter
    from cosmos_hydra.errors import CosmosError
    from cosmos_hydra.models.toy_tokenizer import ToyTokenizer

    torch.set_num_threads(1)
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
    write, encode, count = SampleWriter.write, ToyTokenizer.encode, 0
    draw = random.Random(worker.name)

    def slow(self: ToyTokenizer, video_BCFHW: torch.Tensor) -> torch.Tensor:
        time.sleep(worker.slow_s * draw.random())
        return encode(self, video_BCFHW)

    def watched(self: SampleWriter, sample_id: str, *arguments: Any) -> None:
        nonlocal count
        count += 1
        with (root / f"{worker.name}.encoded").open("a") as file:
            file.write(f"{sample_id}\n")
        if count == worker.at and worker.do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if count == worker.at and worker.do == "wait":
            (root / f"{worker.name}.waits").touch()
            while not (root / "go").exists():
                time.sleep(0.01)
        write(self, sample_id, *arguments)

    SampleWriter.write = watched  # type: ignore[method-assign]
    ToyTokenizer.encode = slow  # type: ignore[method-assign]
    code = 0
    (root / f"{worker.name}.ready").touch()
    while len(list(root.glob("*.ready"))) < worker.beside:
        time.sleep(0.001)
    try:
        prepare(small_config(root, *worker.overrides), torch.device("cpu"))
    except CosmosError as error:
        messages.append(str(error))
        code = error.exit_code
    (root / f"{worker.name}.told").write_text(json.dumps(messages))
    os._exit(code)
