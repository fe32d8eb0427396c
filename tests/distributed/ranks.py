"""Run a function on several ranks: processes forked from a server that has imported everything."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT_S = 120
PRELOADED = ("distributed_cases", "diffusers.models.transformers.transformer_cosmos")


def run(world_size: int, case: Callable[..., Any], *arguments: Any) -> None:
    """Run `case(*arguments)` on every rank; an error of any rank fails the test."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    port = _free_port()
    processes = [
        context.Process(target=_enter, args=(rank, world_size, port, case, arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT_S)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * world_size, codes


def _enter(
    rank: int, world_size: int, port: int, case: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    case(*arguments)
    if dist.is_initialized():
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def folder_of(tmp_path: Path, name: str) -> Path:
    """Return a new folder."""
    folder = tmp_path / name
    folder.mkdir()
    return folder
