"""A sweep on this machine: its table, its files, and what one bad job costs the others."""

import csv
import importlib
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, Command, Outcome
from pages import parse
from small_runs import SAMPLES, small_config, train

from cosmos_hydra import runs
from cosmos_hydra.config import SampleFormat
from cosmos_hydra.data.layout import Layout
from cosmos_hydra.data.ledger import Ledger

METRIC = "metric: val_loss, lower is better"
WRONG_TYPE = "has the wrong type; value 'a' of type 'str' could not be converted to Integer"
PLACE = "runs/sweeps/tiny-synthetic"
TRAIN = ("stage=post_train", *SMALL, "trainer.max_steps=2", "trainer.validate_every=1")
Hook = Callable[[str, Callable[[Any], None]], None]


def run_sweep(command: Command, samples: Path, cwd: Path, *typed: str) -> Outcome:
    """Train on the prepared samples."""
    given = (f"data.path={samples / SAMPLES}", *typed)
    return command("-m", *TRAIN, *given, cwd=cwd)


def table_of(outcome: Outcome) -> list[str]:
    """Return what was printed from the table on, with times, sizes and dates masked."""
    _, heading, table = outcome.stdout.partition("sweep tiny-")
    masked = re.sub(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", "DATE", heading + table)
    masked = re.sub(r"\b\d+:\d\d\b", "0:00", masked)
    return re.sub(r"\b\d\.\d(?=  )", "0.0", masked).splitlines()


def folder_of(cwd: Path) -> Path:
    """Return the folder of the only sweep."""
    [folder] = (cwd / PLACE).iterdir()
    return folder


def lines_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", autouse=True)
def _warm(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Train once in this process: the jobs, its forks, then have imported what they need."""
    config = small_config(small_samples, "trainer.max_steps=1")
    train(config, tmp_path_factory.mktemp("warm") / "run")


@pytest.fixture
def in_job(monkeypatch: pytest.MonkeyPatch) -> Hook:
    """Call something with the trainer of a job before it trains."""

    def hook(name: str, act: Callable[[Any], None]) -> None:
        trainer = importlib.import_module("cosmos_hydra.engines.torch.trainer").Trainer
        real = getattr(trainer, name)

        def acting(self: Any, *arguments: Any) -> Any:
            act(self)
            return real(self, *arguments)

        monkeypatch.setattr(trainer, name, acting)

    return hook


def test_the_table_is_sorted_by_validation_loss_and_ends_with_what_to_type(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    typed = ("optim.lr=1e-4,1e30,1e-3", "log.report=true")
    outcome = run_sweep(command, small_samples, tmp_path, *typed)
    assert outcome.code == 1, outcome.stderr
    cause = "the last validation loss is inf: training has diverged"
    assert outcome.stderr == f"cosmos-hydra: job 1: {cause}\n"
    folder = folder_of(tmp_path)
    jobs = lines_of(folder)
    losses = [float(job["val_loss"]) for job in jobs[:2]]
    assert losses == sorted(losses)
    assert table_of(outcome) == [
        f"sweep tiny-synthetic/DATE  3 jobs, 2 ok, 1 failed, 0:00 wall      {METRIC}",
        "  #  optim.lr  val_loss  step  time  peak GB  run",
        f"  2     0.001    {losses[0]:.4f}     2  0:00      0.0  {PLACE}/DATE/2  <- best",
        f"  0    0.0001    {losses[1]:.4f}     2  0:00      0.0  {PLACE}/DATE/0",
        f"  1     1e+30         -     2  0:00      0.0  failed: {cause}",
        f"use it: cosmos-hydra stage=generate checkpoint={PLACE}/DATE/2",
    ]
    assert [job["status"] for job in jobs] == ["ok", "ok", "failed"]
    assert [job["optim.lr"] for job in jobs] == ["0.001", "0.0001", "1e+30"]
    assert [job["run"] for job in jobs] == ["2", "0", "1"]
    assert {job["trainer.max_steps"] for job in jobs} == {"2"}
    assert jobs[2]["error"] == cause
    last = json.loads((folder / "2/metrics.jsonl").read_text().splitlines()[-2])
    assert float(jobs[0]["val_loss"]) == last["val_loss"]
    names = [path.name for path in folder.iterdir()]
    assert sorted(names) == ["0", "1", "2", "sweep.csv", "sweep.html"]
    page = parse(folder / "sweep.html")
    assert list(page.plots()) == ["Validation loss", "Training loss"]
    for plot in page.plots().values():
        assert all(f">optim.lr={rate}<" in plot for rate in ("0.001", "0.0001", "1e+30"))
    assert [row[0] for row in page.rows["jobs"][1:]] == ["\n2", "\n0", "\n1"]
    assert (
        f"optim.lr=0.001 is best, with a validation loss of {losses[0]:.4f}"
        in page.sections["header"]
    )


def test_a_job_that_dies_in_any_way_costs_the_others_nothing(
    command: Command, small_samples: Path, tmp_path: Path, in_job: Hook
) -> None:
    def die(trainer: Any) -> None:
        if trainer.config.seed == 1:
            os._exit(3)
        if trainer.config.seed == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if trainer.config.seed == 3:
            raise RuntimeError("a robot\nfell over")

    in_job("train", die)
    typed = ("seed=0,1,2,3", "log.report=false")
    outcome = run_sweep(command, small_samples, tmp_path, *typed)
    assert outcome.code == 1
    [finished, *dead] = lines_of(folder_of(tmp_path))
    assert finished["seed"] == "0"
    assert [(job["seed"], job["status"], job["error"]) for job in dead] == [
        ("1", "lost", "ended with exit code 3 and without a word"),
        ("2", "lost", "killed by SIGKILL; likely out of memory"),
        ("3", "failed", "RuntimeError: a robot"),
    ]
    last = f"job 3: {dead[2]['error']}\n"
    assert outcome.stderr.endswith(f"fell over\ncosmos-hydra: {last}")
    assert outcome.stderr.count("Traceback") == 1
    assert "Error executing job" not in outcome.stderr
    loss = float(finished["val_loss"])
    table = table_of(outcome)
    assert table[0].startswith("sweep tiny-synthetic/DATE  4 jobs, 1 ok, 1 failed, 2 lost, ")
    assert table[2] == f"  0     0    {loss:.4f}     2  0:00      0.0  {PLACE}/DATE/0  <- best"
    assert table[6:10] == [
        "",
        "over seeds:",
        "  mean val_loss  std  seeds",
        f"         {loss:.4f}    -      1",
    ]
    assert table[-1] == f"go on: the same command with hydra.sweep.dir={PLACE}/DATE"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ("trainer.max_steps=0,1", "trainer.max_steps=0 is too small; at least 1"),
        (
            "trainer.max_steps=a,1",
            f"trainer.max_steps=a {WRONG_TYPE}",
        ),
    ],
)
def test_a_wrong_value_fails_its_job_alone(
    command: Command, small_samples: Path, tmp_path: Path, values: str, problem: str
) -> None:
    outcome = run_sweep(command, small_samples, tmp_path, values, "log.report=false")
    assert (outcome.code, outcome.stderr) == (2, f"cosmos-hydra: job 0: {problem}\n")
    jobs = lines_of(folder_of(tmp_path))
    assert [(job["number"], job["status"], job["error"]) for job in jobs] == [
        ("1", "ok", ""),
        ("0", "failed", problem),
    ]


@pytest.mark.parametrize(
    ("typed", "problems"),
    [
        (("seed=1,2", "data.frames=0"), ["data.frames=0 is too small; at least 1"]),
        (
            ("trainer.max_steps=0,-1",),
            [f"trainer.max_steps={steps} is too small; at least 1" for steps in (0, -1)],
        ),
        (("seed=1,2", "optim.lrr=1"), ["optim.lrr=1 is not a config key; did you mean optim.lr?"]),
        (("seed=1,2", "sweep=xx"), ["sweep=xx does not exist; options: lr, lr_optuna"]),
    ],
)
def test_what_is_wrong_with_every_job_is_said_once_and_leaves_nothing(
    command: Command, tmp_path: Path, typed: tuple[str, ...], problems: list[str]
) -> None:
    refused = command("-m", "stage=post_train", *typed, cwd=tmp_path)
    assert refused.code == 2
    assert refused.stderr.splitlines() == [f"cosmos-hydra: {problem}" for problem in problems]
    assert refused.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 75)],
)
def test_a_signal_ends_the_sweep_after_the_job_has_saved_and_the_folder_goes_on(
    command: Command,
    small_samples: Path,
    tmp_path: Path,
    in_job: Hook,
    number: signal.Signals,
    code: int,
) -> None:
    pressed = tmp_path / "pressed"

    def interrupt(trainer: Any) -> None:
        if trainer.config.seed == 1 and trainer.step == 1 and not pressed.exists():
            pressed.touch()
            os.kill(os.getppid(), number)
            time.sleep(0.5)

    in_job("_look", interrupt)
    before = signal.getsignal(number)
    typed = ("seed=0,1,2", "log.report=false")
    outcome = run_sweep(command, small_samples, tmp_path, *typed)
    assert signal.getsignal(number) == before
    assert outcome.code == code
    folder = folder_of(tmp_path)
    jobs = lines_of(folder)
    assert [(job["number"], job["status"]) for job in jobs] == [("0", "ok"), ("1", "preempted")]
    assert runs.steps(folder / "1") == [1]
    *_, use, on = outcome.stdout.splitlines()
    assert use == f"use it: cosmos-hydra stage=generate checkpoint={jobs_place(folder)}/0"
    assert on == f"go on: the same command with hydra.sweep.dir={jobs_place(folder)}"
    if number != signal.SIGINT:  # the rest is the same
        return

    again = run_sweep(
        command, small_samples, tmp_path, *typed, f"hydra.sweep.dir={jobs_place(folder)}"
    )
    assert (again.code, again.stderr) == (0, "")
    assert "0 has finished at step 2" in again.stdout
    assert "steps 1 to 2" in again.stdout
    done = lines_of(folder)
    assert sorted(job["number"] for job in done) == ["0", "1", "2"]
    assert {job["status"] for job in done} == {"ok"}
    assert {job["number"]: job["val_loss"] for job in done}["0"] == jobs[0]["val_loss"]


def jobs_place(folder: Path) -> str:
    return f"{PLACE}/{folder.name}"


def test_a_pipeline_makes_its_samples_once_and_jobs_at_once_wait_for_each_other(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_samples / "samples", tmp_path / "samples")
    shutil.rmtree(tmp_path / SAMPLES)
    layout = Layout(tmp_path / SAMPLES, SampleFormat.safetensors)
    held = threading.Event()

    def hold() -> None:
        with closing(Ledger(layout.lock)) as ledger:
            assert ledger.enter()
            ledger.sign()
            held.set()
            until_s = time.monotonic() + 100
            while b"waiting: " not in os.pread(1, 1 << 20, 0) and time.monotonic() < until_s:
                time.sleep(0.1)  # the file that standard output is captured in

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    outcome = command(
        *("-m", *TRAIN, "stage=pipeline", "pipeline.stages=[preprocess,post_train]"),
        *("optim.lr=1e-3,1e-4", "log.report=false"),
        cwd=tmp_path,
    )
    holder.join()
    assert (outcome.code, outcome.stderr) == (0, "")
    waiting = f"waiting: data.path={SAMPLES} is in use by process {os.getpid()} on "
    assert outcome.stdout.count(waiting) == 1
    assert outcome.stdout.count("encoding with the toy tokenizer") == 1
    assert outcome.stdout.count("are up to date") == 1
    first, second = (float(job["val_loss"]) for job in lines_of(folder_of(tmp_path)))
    assert first < second


def test_sweep_lr_is_a_sweep_without_m_and_typed_values_replace_its_own(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    typed = (*TRAIN, f"data.path={small_samples / SAMPLES}", "trainer.max_steps=1", "sweep=lr")
    lighter = ("trainer.validate_every=0", "trainer.save_every=0", "log.report=false")
    outcome = command(*typed, *lighter, "optim.lr=1e-4,1e-3", cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert table_of(outcome) == [
        "sweep tiny-synthetic/DATE  2 jobs, 2 ok, 0:00 wall",
        "  #  optim.lr  step  time  peak GB  run",
        f"  0    0.0001     1  0:00      0.0  {PLACE}/DATE/0",
        f"  1     0.001     1  0:00      0.0  {PLACE}/DATE/1",
    ]
    described = json.loads((folder_of(tmp_path) / "0/run.json").read_text())
    assert "optim.lr=0.0001" in described["command"]
    assert "sweep=lr" not in described["command"]
    composed = command(*typed, "--cfg", "hydra", "-p", "hydra.sweeper.params", cwd=tmp_path)
    assert composed.stdout.splitlines()[1] == "optim.lr: 3e-7,1e-6,3e-6"


def test_ranks_that_torchrun_started_do_not_each_run_the_sweep(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = command("-m", "stage=post_train", "seed=1,2", cwd=tmp_path)
    message = (
        "each of 2 ranks would start jobs of its own; leave torchrun or srun out, or launch= and -m"
    )
    assert (refused.code, refused.stderr) == (2, f"cosmos-hydra: {message}\n")
