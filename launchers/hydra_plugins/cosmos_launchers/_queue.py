"""Jobs in Slurm, and what its queue says of them. Works without an accounting database."""

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from hydra_plugins.cosmos_launchers._result import Result

# states of a job that may yet leave a result
ALIVE = {
    *("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD"),
    *("REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT"),
}


@dataclass
class Submitted:
    """A job of this launcher in Slurm."""

    number: int
    overrides: Sequence[str]
    config: DictConfig
    directory: Path
    # where its processes exchange files
    folder: Path
    job: str = ""
    result: Result | None = None
    # since when the queue no longer runs it
    gone_s: float | None = None


def states(jobs: Iterable[str]) -> dict[str, str] | None:
    """Return the state of each job that the controller knows; None if it does not answer."""
    # of an array, as a job that is gone would make it an error for all
    arrays = {job.partition("_")[0] for job in jobs}
    found: dict[str, str] = {}
    for array in arrays:
        asked = subprocess.run(
            [
                *("squeue", "--noheader", "--states=all", "--array", "--format=%F_%K %A %T"),
                f"--jobs={array}",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode and "Invalid job id" not in asked.stderr:
            return None
        for line in asked.stdout.splitlines():
            with_index, number, state = line.split()
            found[with_index if not with_index.endswith("N/A") else number] = state
    return found


def cancel(jobs: list[str]) -> None:
    """Cancel jobs, all in one call."""
    subprocess.run(["scancel", *jobs], check=False)
