"""What Slurm starts once on each node of a job, through submitit.

Node 0 keeps the books: it decides what the job came to, writes that, and puts a preempted job back
into the queue. By then everything is saved: a requeue begins to kill at once.
"""

import os
import re
import socket
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra.core.utils import run_job
from hydra.types import HydraContext
from omegaconf import DictConfig

from hydra_plugins.cosmos_launchers import _payload, _result
from hydra_plugins.cosmos_launchers._agent import node_name
from hydra_plugins.cosmos_launchers._node import noting_signals, run_agent
from hydra_plugins.cosmos_launchers._payload import Payload
from hydra_plugins.cosmos_launchers._result import (
    FAILED,
    OK,
    PREEMPTED,
    NodeReport,
    Result,
)

# what node 0 gets to write the result before a failure here ends its task
LATER_S = 30.0
KILLED_S = 60.0


@dataclass(frozen=True)
class Task:
    """Callable for submitit: runs the ranks of this node."""

    folder: Path
    # as composed, with the section hydra
    config: DictConfig

    def __call__(self) -> None:
        """Run this node's ranks; ends the process with an exit code that Slurm may believe.

        Signals are noted from here on, in place of submitit's handlers, which would requeue before
        anything is saved.
        """
        with noting_signals() as asked:
            payload = _payload.load(self.folder)
            os.chdir(payload.working_directory)
            node = int(os.environ["SLURM_NODEID"])
            if node == 0:
                _payload.forget(self.folder)
            nodes = hostnames(os.environ["SLURM_JOB_NODELIST"])
            port = payload.port or 20000 + int(os.environ["SLURM_JOB_ID"]) % 10000
            began_s = time.time()

            def run_ranks(_: DictConfig) -> None:
                run_agent(self.folder, payload, asked, node, nodes[0], port)

            problem = unresolvable(nodes[0]) if payload.nodes > 1 else None
            if node > 0:
                if problem is None:
                    code = run_agent(self.folder, payload, asked, node, nodes[0], port)
                else:
                    code = 1
                    report = NodeReport(node, node_name(), {}, problem)
                    _result.write(self.folder / f"node_{node}.pkl", report)
                if code:
                    self._wait_for_result()
                    raise SystemExit(1)
                return
            if problem is None:
                run_job(
                    hydra_context=HydraContext(None, Callbacks()),
                    task_function=run_ranks,
                    config=self.config,
                    job_dir_key="hydra.sweep.dir",
                    job_subdir_key="hydra.sweep.subdir",
                )
                result = _result.decide(self.folder, payload.logs, began_s)
            else:
                result = Result(FAILED, error=problem, exit_code=1)
            if result.status == PREEMPTED:
                result = go_on(self.folder, payload, result)
            _result.write(self.folder / _payload.RESULT, result)
            if result.status != OK:
                raise SystemExit(result.exit_code or 1)

    def _wait_for_result(self) -> None:
        until_s = time.monotonic() + LATER_S
        while time.monotonic() < until_s and not (self.folder / _payload.RESULT).is_file():
            time.sleep(0.2)


def go_on(folder: Path, payload: Payload, result: Result) -> Result:
    """Put this job back into the queue and wait for the end that this brings.

    Returns the result where it does not go on. Where Slurm has ended the job itself, by scancel or
    to run it again, it also decides what becomes of it; then this does not return either.
    """
    count = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    job = os.environ["SLURM_JOB_ID"]
    _result.write(folder / _payload.STOPPED, result)
    if job_state(job) == "RUNNING":
        if count >= payload.max_requeues:
            limit = f"hydra.launcher.max_requeues={payload.max_requeues} is used up"
            return replace(result, error=f"{result.error}; {limit}")
        print(f"{result.error}; job {job} is requeued, time {count + 1}", flush=True)  # noqa: T201
        asked = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        if asked.returncode:
            why = " ".join(asked.stderr.split())
            return replace(result, error=f"{result.error}; no requeue: {why}")
    time.sleep(KILLED_S)
    raise SystemExit(result.exit_code)


def job_state(job: str) -> str:
    """Return Slurm's word for what a job is doing."""
    shown = subprocess.run(
        ["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True
    )
    found = re.search(r"\bJobState=(\w+)", shown.stdout)
    return found[1] if found else "UNKNOWN"


def hostnames(nodes: str) -> list[str]:
    """Return the names in a list as Slurm writes it."""
    from submitit.slurm.slurm import _parse_node_list

    return list(_parse_node_list(nodes))


def unresolvable(host: str) -> str | None:
    """Return what is wrong with a name that has no address, on which nodes would wait in vain."""
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror:
        return f"no address is known for node {host}; have it added to the DNS or to /etc/hosts"
    return None
