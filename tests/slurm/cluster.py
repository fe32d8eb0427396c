"""A Slurm cluster of two nodes on this machine, and commands whose jobs run there."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "docker/slurm"
PROTOCOL = Path(__file__).with_name("protocol.py")
LIMIT_S = 240  # a busy machine takes long to start programs
# 2 nodes with 2 CPU ranks each
FIELDS = (
    *("hydra.launcher.nodes=2", "hydra.launcher.gpus_per_node=0"),
    *("hydra.launcher.nproc_per_node=2", "hydra.launcher.poll_s=2", "hydra.launcher.lost_s=5"),
)


@dataclass
class Ended:
    """What a command left."""

    code: int
    stdout: str
    stderr: str


@dataclass
class Running:
    """A command that may still run."""

    process: "subprocess.Popen[str]"
    folder: Path

    def end(self) -> Ended:
        """Wait for its end."""
        try:
            stdout, stderr = self.process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            stdout, stderr = self.process.communicate()
            logs = [f"{p}:\n{p.read_text()}" for p in self.folder.rglob("*.log")]
            logs += [f"{p}:\n{p.read_text()}" for p in self.folder.rglob("*.out")]
            pytest.fail("\n".join(["it hangs", stdout, stderr, *logs]))
        return Ended(self.process.returncode, stdout, stderr)

    def ask(self, number: int = signal.SIGINT) -> None:
        """Send a signal to the command."""
        self.process.send_signal(number)


class Cluster:
    """Slurm, and the commands that were started on it."""

    def __init__(self) -> None:
        self.started: list[Running] = []

    def start(self, *typed: str, folder: Path) -> Running:
        """Start the tests' app with the Slurm launcher; a single job writes into `folder`/run."""
        arguments = ["-m", "hydra/launcher=cosmos_slurm", *FIELDS, "hydra.sweep.dir=run", *typed]
        if not any("," in argument for argument in typed):
            arguments.append("hydra.sweep.subdir=.")
        return self.start_command(str(PROTOCOL), *arguments, folder=folder)

    def start_command(self, *arguments: str, folder: Path) -> Running:
        """Start Python in a folder."""
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(Running(process, folder))
        return self.started[-1]

    def run(self, *typed: str, folder: Path) -> Ended:
        """Run the tests' app to its end."""
        return self.start(*typed, folder=folder).end()

    def slurm(self, *command: str) -> str:
        """Return what a command of Slurm prints."""
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout

    def jobs(self) -> list[tuple[str, str]]:
        """Return id and state of the jobs that have not ended."""
        lines = self.slurm("squeue", "--noheader", "--format=%A %T").splitlines()
        return [(line.split()[0], line.split()[1]) for line in lines]

    def shown(self, job: str) -> str:
        """Return all that Slurm knows of a job."""
        return self.slurm("scontrol", "--oneliner", "show", "job", job)

    def start_now(self, job: str) -> None:
        """Start a requeued job at once and wait until it runs."""

        def has_started() -> bool:
            self.hurry(job)
            shown = self.shown(job)
            is_on = "JobState=RUNNING" in shown or "JobState=COMPLETED" in shown
            return is_on and "Restarts=0" not in shown

        until(has_started)

    def hurry(self, job: str) -> None:
        """Let a requeued job start now, if it waits: Slurm lets it wait for two minutes."""
        if "Reason=BeginTime" in self.shown(job):
            update = ("scontrol", "update", f"JobId={job}", "StartTime=now")
            subprocess.run(update, check=False)


def until(is_so: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Wait until something is so."""
    end_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end_s, "it does not come about"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a cluster, or skip."""
    if not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch"))):
        pytest.skip("Slurm is not installed: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("the nodes of the test cluster want root")
    folder = tmp_path_factory.mktemp("cluster")
    # below the ports that Linux gives to connections, and not those of another cluster here
    port = 23000 + os.getpid() % 900 * 10
    subprocess.run([str(SCRIPTS / "start.sh"), str(folder), str(port)], check=True, timeout=60)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    cluster = Cluster()
    try:
        yield cluster
    finally:
        for running in cluster.started:
            running.process.kill()
        subprocess.run(["scancel", "--user=root"], check=False, timeout=30)
        subprocess.run([str(SCRIPTS / "stop.sh"), str(folder)], check=True, timeout=30)
        os.environ.pop("SLURM_CONF")
        if before:
            os.environ["SLURM_CONF"] = before
