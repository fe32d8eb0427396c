"""A node's agent: torch's elastic agent, which starts and watches the ranks of this node.

`python -m hydra_plugins.cosmos_launchers._agent FOLDER NODE HOST PORT PARENT`. A process of its
own, since it blocks signals: a thread waits for them, passes them on to the ranks, and sees to it
that no rank stays behind when others have left.
"""

import os
import signal
import socket
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra_plugins.cosmos_launchers import _payload, _process, _result
from hydra_plugins.cosmos_launchers._payload import Payload
from hydra_plugins.cosmos_launchers._result import NodeReport

WATCH_S = 0.2
LOCAL = "localhost"
# another node has failed: for ranks here to say what befell them
FOREIGN_S = 5.0


class Agent:
    """The agent of one node."""

    def __init__(self, folder: Path, node: int, host: str, port: int) -> None:
        self.folder, self.node, self.host, self.port = folder, node, host, port
        self.payload = _payload.load(folder)
        self.num_asked = 0

    def run(self) -> int:
        """Run the ranks of this node to their end and return the exit code."""
        watching = threading.Thread(target=self._watch, daemon=True)
        watching.start()
        try:
            self._launch()
        except Exception as error:  # noqa: BLE001 (this process ends here)
            failures = {
                rank: (failure.local_rank, failure.exitcode, float(failure.timestamp))
                for rank, failure in getattr(error, "failures", {}).items()
            }
            text = "" if failures else f"{type(error).__name__}: {error}".partition("\n")[0]
            self._report(failures, text)
            return 1
        return 0

    def _launch(self) -> None:
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        payload, num_ranks = self.payload, ranks_here(self.payload)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // num_ranks)))
        settings: dict[str, Any] = {
            "min_nodes": payload.nodes,
            "max_nodes": payload.nodes,
            "nproc_per_node": num_ranks,
            "run_id": self.folder.name,
            "role": "rank",
            "max_restarts": 0,
            "monitor_interval": 0.1,
            "logs_specs": log_specs(self.folder),
            # of all others the thread takes care
            "signals_to_handle": "SIGQUIT",
            "shutdown_timeout": payload.stop_s,
            "rdzv_backend": "c10d",
            "rdzv_endpoint": f"{LOCAL}:0",
            "local_addr": LOCAL,
        }
        if payload.nodes > 1:
            # rank and address as given: c10d would order nodes by their own idea of their name
            settings |= {
                "rdzv_backend": "static",
                "rdzv_endpoint": f"{self.host}:{self.port}",
                "rdzv_configs": {"rank": self.node, "timeout": payload.timeout_s},
                "local_addr": self.host,
            }
        known = {item.name for item in fields(LaunchConfig)}
        config = LaunchConfig(**{k: v for k, v in settings.items() if k in known})
        worker = ("-m", f"{__package__}._worker", str(self.folder), str(os.getpid()))
        elastic_launch(config, sys.executable)(*worker)

    def _watch(self) -> None:
        """Pass signals on to the ranks; kill those that stay behind."""
        foreign_s: float | None = None
        is_timed = False
        while True:
            asked = signal.sigtimedwait(_process.ASKING, WATCH_S)
            if asked is not None:
                self._ask(asked.si_signo)
            if self.num_asked and not is_timed and any(self.folder.glob("rank_*.pkl")):
                is_timed = True
                timer = threading.Timer(self.payload.stop_s, self._kill)
                timer.daemon = True
                timer.start()
            if foreign_s is None and self._others_failed():
                foreign_s = time.monotonic()
            late_s = time.monotonic() - foreign_s if foreign_s is not None else 0.0
            if late_s > FOREIGN_S:
                self._kill()
            if late_s > 2 * FOREIGN_S:  # torch waits for the other agents yet
                self._report({}, "")
                os._exit(1)

    def _ask(self, number: int) -> None:
        self.num_asked += 1
        if number == signal.SIGINT and self.num_asked > 2:  # it is no longer a question
            self._kill()
        else:
            asking = signal.SIGTERM if number == signal.SIGHUP else number
            _process.send(asking, _process.children())

    def _kill(self) -> None:
        _process.send(signal.SIGKILL, _process.children())

    def _others_failed(self) -> bool:
        reports = self.folder.glob("node_*.pkl")
        return any(report.name != self._report_name for report in reports)

    @property
    def _report_name(self) -> str:
        return f"node_{self.node}.pkl"

    def _report(self, failures: dict[int, tuple[int, int, float]], error: str) -> None:
        report = NodeReport(self.node, node_name(), failures, error)
        _result.write(self.folder / self._report_name, report)


def log_specs(folder: Path) -> Any:
    """Return where torch puts output: nowhere, as ranks open their own files."""
    from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs

    class Inherited(LogsSpecs):
        def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
            def each(text: str) -> dict[int, str]:
                return dict.fromkeys(envs, text)

            files = {local: str(folder / f"torch_{env['RANK']}") for local, env in envs.items()}
            return LogsDest(each(""), each(""), each(os.devnull), each(os.devnull), files)

        @property
        def root_log_dir(self) -> str:
            return str(folder)

    return Inherited()


def ranks_here(payload: Payload) -> int:
    """Return how many ranks a node has; auto = its GPUs, or one."""
    if payload.nproc_per_node != "auto":
        return int(payload.nproc_per_node)
    import torch

    return torch.cuda.device_count() or 1


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def node_name() -> str:
    """Return the node's name: as Slurm has it, or the host's."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def main() -> int:
    """Run an agent as the command line says."""
    folder, node, host, port, parent = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, _process.ASKING)
    _process.end_with_parent(int(parent))
    return Agent(Path(folder), int(node), host, int(port)).run()


if __name__ == "__main__":
    sys.exit(main())
