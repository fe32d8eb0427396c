"""Jobs on a real Slurm of two nodes: results, failures, preemption, time limits, Ctrl-C."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cluster import Cluster, until
from cluster import cluster as cluster

pytestmark = pytest.mark.timeout(540)
TRAIN = ("do=train", "steps=25", "hydra.launcher.time_min=60")


@pytest.fixture(autouse=True)
def _empty(cluster: Cluster) -> None:
    until(lambda: not cluster.jobs())


def step_of(run: Path) -> int:
    path = run / "step"
    return int(path.read_text() or 0) if path.is_file() else 0


def test_four_ranks_on_two_nodes_reduce_together(cluster: Cluster, tmp_path: Path) -> None:
    ended = cluster.run("do=sum", folder=tmp_path)
    assert (ended.code, ended.stderr) == (0, "")
    assert re.fullmatch(r"#0 : do=sum: Slurm job \d+\n", ended.stdout)
    run = tmp_path / "run"
    places = [json.loads((run / f"rank_{rank}.json").read_text()) for rank in range(4)]
    assert [place["RANK"] for place in places] == ["0", "1", "2", "3"]
    assert [place["LOCAL_RANK"] for place in places] == ["0", "1", "0", "1"]
    assert [place["node"] for place in places] == ["0", "0", "1", "1"]
    assert {place["WORLD_SIZE"] for place in places} == {"4"}
    assert sorted(p.name for p in (run / "logs").glob("rank_*")) == [
        f"rank_{rank:02}.log" for rank in range(4)
    ]
    assert list(run.glob(".launch-*")) == []


def test_a_rank_that_raises_is_named_with_its_node_and_log(
    cluster: Cluster, tmp_path: Path
) -> None:
    ended = cluster.run("do=raise", folder=tmp_path)
    assert ended.stderr == (
        "protocol: rank 3 (n2, local 1): ValueError: a bad sample; see run/logs/rank_03.log\n"
    )
    assert ended.code == 1
    assert "ValueError: a bad sample" in (tmp_path / "run/logs/rank_03.log").read_text()
    [job] = re.findall(r"Slurm job (\d+)", ended.stdout)
    until(lambda: "JobState=FAILED" in cluster.shown(job))


def test_a_killed_job_of_a_sweep_is_lost_and_the_other_results_stand(
    cluster: Cluster, tmp_path: Path
) -> None:
    began_s = time.monotonic()
    ended = cluster.run("do=kill", "lr=1,2,3", "hydra.launcher.nodes=1", folder=tmp_path)
    assert time.monotonic() - began_s < 60
    assert ended.code == 1
    [array] = set(re.findall(r"Slurm job (\d+)_\d", ended.stdout))
    lost = rf"Slurm job {array}_1 is \w+ and has left no result; see run/slurm/{array}_1_0_log.out"
    assert re.match(f"protocol: job 1: {lost}\n", ended.stderr)
    # of the others nothing is to be said
    assert re.findall(r"^protocol: job (\d)", ended.stderr, re.MULTILINE) == ["1"]


def preempt(cluster: Cluster, job: str) -> None:
    """Take the nodes away for a job of the partition with priority, as Slurm does."""
    subprocess.run(
        ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=sleep 1"],
        check=True,
        capture_output=True,
        cwd="/",
    )
    until(lambda: "Restarts=1" in cluster.shown(job))


def undisturbed(steps: int) -> float:
    weight = 0.0
    for step in range(1, steps + 1):
        weight = weight * 0.9 + 4 * step + 6
    return weight


@pytest.mark.parametrize("how", ["USR2", pytest.param("TERM", marks=pytest.mark.slow), "partition"])
def test_a_preempted_job_saves_is_requeued_and_ends_with_the_same_weights(
    cluster: Cluster, tmp_path: Path, how: str
) -> None:
    running = cluster.start(*TRAIN, folder=tmp_path)
    run = tmp_path / "run"
    until(lambda: step_of(run) >= 5)
    [(job, _)] = cluster.jobs()
    if how == "partition":
        preempt(cluster, job)
    else:
        subprocess.run(["scancel", f"--signal={how}", job], check=True)
    cluster.start_now(job)
    ended = running.end()
    assert (ended.code, ended.stderr) == (0, "")
    log = (run / "logs/rank_00.log").read_text()
    [saved] = re.findall(r"saved step (\d+)", log)
    assert re.findall(r"from step (\d+)", log) == ["0", saved]
    assert 5 <= int(saved) < 25
    assert re.search(
        rf"ended with exit code 75; job {job} is requeued, time 1",
        (run / f"logs/slurm/{job}_0_log.out").read_text(),
    )
    weights = re.findall(r"ended at ([\d.]+)", log)
    assert [float(weight) for weight in weights] == pytest.approx([undisturbed(25)])


# Slurm's shortest limit is a minute, in which a busy machine has not begun to train
@pytest.mark.slow
def test_a_job_at_its_time_limit_saves_and_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    # Slurm sends the signal up to 30 s before its lead: on a slow machine to ranks not yet in train
    typed = ("do=train", "steps=4000", "hydra.launcher.time_min=1", "hydra.launcher.max_requeues=9")
    running = cluster.start(*typed, "hydra.launcher.signal_lead_s=5", folder=tmp_path)
    log = tmp_path / "run/logs/rank_00.log"
    until(lambda: cluster.jobs())
    [(job, _)] = cluster.jobs()

    def steps(what: str) -> list[str]:
        cluster.hurry(job)
        return re.findall(rf"{what} step (\d+)", log.read_text()) if log.is_file() else []

    until(lambda: len(steps("from")) > 1)
    running.ask()
    time.sleep(0.5)
    running.ask()
    running.end()
    begins, saves = steps("from"), steps("saved")
    assert begins == ["0", *saves][: len(begins)]
    assert int(saves[0]) > 0


def test_requeues_have_a_limit(cluster: Cluster, tmp_path: Path) -> None:
    running = cluster.start(*TRAIN, "hydra.launcher.max_requeues=0", folder=tmp_path)
    until(lambda: step_of(tmp_path / "run") >= 2)
    [(job, _)] = cluster.jobs()
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    ended = running.end()
    assert ended.code == 75
    assert ended.stderr == (
        "protocol: ended with exit code 75; hydra.launcher.max_requeues=0 is used up\n"
    )


def test_ctrl_c_leaves_the_job_and_a_second_one_cancels_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    running = cluster.start("do=train", "steps=500", folder=tmp_path)
    until(lambda: "RUNNING" in dict(cluster.jobs()).values())
    [(job, _)] = cluster.jobs()
    running.ask(signal.SIGINT)
    ended = running.end()
    assert ended.code == 130
    leaving = f"leaving Slurm jobs {job} to run; Ctrl-C again within 5 s cancels them\n"
    assert ended.stdout.endswith(leaving)
    assert [number for number, _ in cluster.jobs()] == [job]
    subprocess.run(["scancel", job], check=True)
    until(lambda: not cluster.jobs())

    other = tmp_path / "other"
    other.mkdir()
    running = cluster.start("do=train", "steps=500", folder=other)
    until(lambda: "RUNNING" in dict(cluster.jobs()).values())
    [(job, _)] = cluster.jobs()
    running.ask(signal.SIGINT)
    time.sleep(0.5)
    running.ask(signal.SIGINT)
    ended = running.end()
    assert ended.code == 130
    assert ended.stdout.endswith(f"cancelled {job}\n")
    until(lambda: not cluster.jobs())
    assert "JobState=CANCELLED" in cluster.shown(job)


def test_a_cancelled_job_saves_and_is_not_run_again(cluster: Cluster, tmp_path: Path) -> None:
    running = cluster.start("do=train", "steps=500", folder=tmp_path)
    until(lambda: step_of(tmp_path / "run") >= 1)
    [(job, _)] = cluster.jobs()
    subprocess.run(["scancel", job], check=True)
    ended = running.end()
    assert ended.code == 75
    assert ended.stderr == (f"protocol: ended with exit code 75; Slurm job {job} is CANCELLED\n")
    assert (tmp_path / "run/saved.pt").is_file()


def test_a_node_without_an_address_is_named(cluster: Cluster, tmp_path: Path) -> None:
    ended = cluster.run("do=sum", "hydra.launcher.partition=nowhere", folder=tmp_path)
    assert ended.stderr == (
        "protocol: no address is known for node nowhere1; have it added to the DNS or to "
        "/etc/hosts\n"
    )
    assert ended.code == 1


def test_what_sbatch_refuses_is_said(cluster: Cluster, tmp_path: Path) -> None:
    ended = cluster.run("do=sum", "hydra.launcher.partition=no-such", folder=tmp_path)
    assert ended.code == 1
    assert "protocol: sbatch did not take the job; " in ended.stderr
    assert "invalid partition specified: no-such" in ended.stderr
