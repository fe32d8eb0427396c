"""What became of a job and of each of its ranks, in files that any process can read."""

import os
import pickle
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.utils import JobReturn, JobStatus

from hydra_plugins.cosmos_launchers._jobs import Failed, JobError

OK, FAILED, PREEMPTED, LOST = "ok", "failed", "preempted", "lost"
# a death is noticed so much later than it happens: the agent counts whole seconds
NOTICED_S = 2.0


@dataclass(frozen=True)
class Result:
    """What a job came to."""

    # ok; failed; preempted = it saved and wants to go on; lost = it ended without a word
    status: str
    # what the task returned on rank 0
    value: Any = None
    # why, where it is not ok
    error: str | None = None
    seconds: float = 0.0
    exit_code: int = 0


@dataclass(frozen=True)
class Record:
    """What a rank left, or what its agent says of one that left nothing."""

    rank: int
    local_rank: int
    host: str
    status: str
    error: str = ""
    exit_code: int = 0
    # whether every rank meets the error, so that none is to be named
    is_everywhere: bool = False
    value: Any = None
    # when it ended, s since 1970
    ended_s: float = 0.0


@dataclass(frozen=True)
class NodeReport:
    """What the agent of a node left: exit codes of the ranks that failed, and when it saw them."""

    node: int
    host: str
    failures: dict[int, tuple[int, int, float]]  # rank: local rank, exit code, s since 1970
    error: str = ""


def job_error(result: Result) -> JobError:
    """Return why a job has no value."""
    return JobError(result.error or result.status, result.exit_code, result.status == LOST)


def job_return(result: Result, of: JobReturn | None = None) -> JobReturn:
    """Return a result in Hydra's terms."""
    known = vars(of) if of is not None else {}
    if result.status == OK:
        return JobReturn(**{**known, "status": JobStatus.COMPLETED, "_return_value": result.value})
    return Failed(**{**known, "status": JobStatus.FAILED, "_return_value": job_error(result)})


def write(path: Path, content: Any) -> None:
    """Write an object so that readers see all of it or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        cloudpickle.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read(path: Path) -> Any:
    """Return the object in a file of ours, None if there is no file."""
    try:
        return pickle.loads(path.read_bytes())
    except FileNotFoundError:
        return None


def read_all(folder: Path, pattern: str) -> list[Any]:
    """Return the objects in all files of a name."""
    return [read(path) for path in sorted(folder.glob(pattern))]


def log_of(logs: Path, rank: int) -> Path:
    """Return the log file of a rank."""
    return logs / f"rank_{rank:02}.log"


def decide(folder: Path, logs: Path, began_s: float) -> Result:
    """Return what a job came to, from the files of its ranks and agents.

    The earliest to fail decides: the others fail because of it.
    """
    records: list[Record] = read_all(folder, "rank_*.pkl")
    reports: list[NodeReport] = read_all(folder, "node_*.pkl")
    seconds = time.time() - began_s
    known = {record.rank for record in records}
    deaths = [death for report in reports for death in _deaths(report, known)]
    bad = sorted(
        (r for r in [*records, *deaths] if r.status != OK), key=lambda record: record.ended_s
    )
    if bad:
        first = bad[0]
        error = _named(first, logs) if not first.is_everywhere else first.error
        return Result(first.status, error=error, seconds=seconds, exit_code=first.exit_code)
    errors = [f"{report.host}: {report.error}" for report in reports if report.error]
    if errors:
        return Result(FAILED, error=errors[0], seconds=seconds, exit_code=1)
    values = [record.value for record in records if record.rank == 0]
    if not values:
        error = f"the ranks ended without a word; see {shown(logs)}"
        return Result(LOST, error=error, seconds=seconds, exit_code=1)
    return Result(OK, values[0], seconds=seconds)


def _deaths(report: NodeReport, known: set[int]) -> Iterable[Record]:
    for rank, (local_rank, code, noticed_s) in report.failures.items():
        if rank not in known:
            yield Record(
                rank=rank,
                local_rank=local_rank,
                host=report.host,
                status=LOST,
                error=death(code),
                exit_code=1,
                ended_s=noticed_s - NOTICED_S,
            )


def death(code: int) -> str:
    """Return how a process ended, by its exit code as Python has it."""
    if code >= 0:
        return f"ended with exit code {code} and without a word"
    name = signal.Signals(-code).name
    return f"killed by {name}" + ("; likely out of memory" if name == "SIGKILL" else "")


def _named(record: Record, logs: Path) -> str:
    where = f"rank {record.rank} ({record.host}, local {record.local_rank})"
    log = f"see {shown(log_of(logs, record.rank))}"
    return "\n".join(f"{where}: {line}; {log}" for line in record.error.splitlines() or [""])


def shown(path: Path) -> Path:
    """Return the path relative to the working directory where that is shorter to read."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
