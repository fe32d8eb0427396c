"""sweep=lr_optuna: a search that goes on where it stood, and lives with failed trials."""

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, Command, Outcome
from small_runs import SAMPLES

from cosmos_hydra.engines.torch.trainer import Trainer

PLACE = "runs/sweeps/tiny-synthetic"
LIGHT = ("trainer.max_steps=1", "trainer.validate_every=1", "log.report=false")


def search(command: Command, samples: Path, cwd: Path, trials: int, *typed: str) -> Outcome:
    settings = (*SMALL, *LIGHT, f"data.path={samples / SAMPLES}", f"hydra.sweeper.trials={trials}")
    return command("stage=post_train", "sweep=lr_optuna", *settings, *typed, cwd=cwd)


def test_without_optuna_it_says_what_to_install(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    refused = command("stage=post_train", "sweep=lr_optuna", cwd=tmp_path)
    message = "sweep=lr_optuna needs Optuna; run: pip install 'cosmos-hydra[sweep]'"
    assert (refused.code, refused.stderr) == (2, f"cosmos-hydra: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_search_goes_on_with_its_study_and_failed_trials_end_nothing(
    command: Command, small_samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    train = Trainer.train

    def fail_once(trainer: Any) -> float | None:
        if trainer.run.name == "0" and not (tmp_path / "failed").exists():
            (tmp_path / "failed").touch()
            raise RuntimeError("fell over")
        return train(trainer)

    monkeypatch.setattr(Trainer, "train", fail_once)
    lr = "optim.lr=tag(log,interval(1e-4,1e-2))"
    first = search(command, small_samples, tmp_path, 2, lr, "hydra.sweeper.batch=2")
    assert first.code == 1
    assert "2 trials, 1 with a result; best " in first.stdout
    second = search(command, small_samples, tmp_path, 3, lr)
    assert (second.code, second.stderr) == (0, "")
    assert second.stdout.count("== job ") == 1
    last = second.stdout.splitlines()[-1]
    assert last.startswith(f"study {PLACE}/optuna.jsonl: 3 trials, 2 with a result; best ")
    third = search(command, small_samples, tmp_path, 3, lr)
    assert (third.code, third.stdout) == (0, f"{last}\n")
    rates = []
    for folder in sorted(path for path in (tmp_path / PLACE).iterdir() if path.is_dir()):
        with (folder / "sweep.csv").open(newline="") as file:
            rates += [float(job["optim.lr"]) for job in csv.DictReader(file)]
    assert len(set(rates)) == 3
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)


def test_what_is_wrong_with_every_trial_is_said_before_there_is_a_study(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    searched = ("optim.weight_decay=interval(0,1)", "trainer.keep=range(1,3)", "seed=1,2")
    refused = search(command, small_samples, tmp_path, 2, "data.frames=0", *searched)
    message = "data.frames=0 is too small; at least 1"
    assert (refused.code, refused.stderr) == (2, f"cosmos-hydra: {message}\n")
    assert list(tmp_path.iterdir()) == []
