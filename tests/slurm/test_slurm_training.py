"""A sweep of the real post_train over two nodes, and the same command as tasks of srun."""

import csv
import json
import os
import re
from pathlib import Path

import pytest
from cluster import FIELDS, Cluster, until
from cluster import cluster as cluster
from conftest import SMALL
from small_runs import SAMPLES, rows_of

from cosmos_hydra import runs

pytestmark = pytest.mark.timeout(540)


def typed(samples: Path) -> tuple[str, ...]:
    """Return a training of one rank a node."""
    settings = ("trainer.max_steps=2", "trainer.validate_every=2", "log.report=false")
    return ("stage=post_train", *SMALL, *settings, f"data.path={samples / SAMPLES}")


def test_a_sweep_over_learning_rates_trains_on_two_nodes(
    cluster: Cluster, small_samples: Path, tmp_path: Path
) -> None:
    until(lambda: not cluster.jobs())
    launch = ("launch=slurm", *FIELDS, "hydra.launcher.nproc_per_node=1", "parallel=ddp")
    command = ("-m", "cosmos_hydra", "-m", *typed(small_samples), *launch)
    running = cluster.start_command(
        *command, "optim.lr=1e-4,1e-3", "hydra.sweep.dir=sweep", folder=tmp_path
    )
    ended = running.end()
    assert (ended.code, ended.stderr) == (0, "")
    ids = set(re.findall(r"Slurm job (\d+)_\d", ended.stdout))
    assert len(ids) == 1  # one array
    assert "2 jobs, 2 ok" in ended.stdout
    with (tmp_path / "sweep/sweep.csv").open(newline="") as file:
        best, other = csv.DictReader(file)
    assert {best["status"], other["status"]} == {"ok"}
    assert float(best["val_loss"]) < float(other["val_loss"])
    winner = f"use it: cosmos-hydra stage=generate checkpoint=sweep/{best['run']}"
    assert ended.stdout.splitlines()[-1] == winner
    for number, rate in ((0, 1e-4), (1, 1e-3)):
        run = tmp_path / "sweep" / str(number)
        assert runs.steps(run) == [2]
        described = json.loads((run / "run.json").read_text())
        assert described["config"]["optim"]["lr"] == rate
        assert [row["step"] for row in rows_of(run) if "loss" in row] == [1, 2]
        assert "on 2 cpu ranks (dp_replicate 2)" in (run / "run.log").read_text()
        assert (run / "logs/rank_01.log").is_file()


def test_tasks_of_srun_are_ranks_of_one_run(
    cluster: Cluster, small_samples: Path, tmp_path: Path
) -> None:
    until(lambda: not cluster.jobs())
    program = (
        "import subprocess, sys\n"
        "command = ['srun', '--nodes=2', '--ntasks=2', sys.executable, *sys.argv[1:]]\n"
        "sys.exit(subprocess.run(command).returncode)\n"
    )
    assert "RANK" not in os.environ
    running = cluster.start_command(
        *("-c", program, "-m", "cosmos_hydra", *typed(small_samples), "parallel=ddp"),
        folder=tmp_path,
    )
    ended = running.end()
    assert ended.code == 0, ended.stderr
    run = tmp_path / "runs/tiny-synthetic"
    assert runs.steps(run) == [2]
    assert ended.stdout.count("on 2 cpu ranks (dp_replicate 2)") == 1
