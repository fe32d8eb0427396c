"""What a launcher hands to the processes of a job, in a folder that all of them see.

The folder lies in the run directory, is readable by the user alone, and goes with the job's end.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.types import TaskFunction
from omegaconf import DictConfig

from hydra_plugins.cosmos_launchers import _result

PAYLOAD, RESULT = "payload.pkl", "result.pkl"
# the result of an attempt that may not be the last
STOPPED = "stopped.pkl"
PREFIX = ".launch-"


@dataclass(frozen=True)
class Payload:
    """A job: what to call with what, and on how many ranks."""

    task_function: TaskFunction
    # what it is called with; the section hydra is in `state`
    config: DictConfig
    # Hydra's singletons and OmegaConf's resolvers
    state: Any
    # where the job writes; absolute, resolved once
    directory: Path
    # of rank 0's process and all others
    working_directory: Path
    nodes: int
    nproc_per_node: str
    port: int | None
    timeout_s: int
    stop_s: int
    max_requeues: int = 0

    @property
    def logs(self) -> Path:
        return self.directory / "logs"


def create(payload: Payload) -> Path:
    """Write a payload into a new folder of the run directory and return the folder."""
    payload.directory.mkdir(parents=True, exist_ok=True)
    payload.logs.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=payload.directory))
    _result.write(folder / PAYLOAD, payload)
    return folder


def load(folder: Path) -> Payload:
    """Return the payload of a folder and make Hydra's state that of the launcher's process."""
    payload = _result.read(folder / PAYLOAD)
    assert isinstance(payload, Payload), folder
    Singleton.set_state(payload.state)
    return payload


def forget(folder: Path) -> None:
    """Remove what the records of an earlier attempt, put back into the queue, left."""
    for pattern in ("rank_*.pkl", "node_*.pkl", STOPPED):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Remove the folder of a job that has ended."""
    shutil.rmtree(folder, ignore_errors=True)
