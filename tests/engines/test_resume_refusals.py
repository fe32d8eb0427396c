"""What an existing run allows to change, what it refuses, and resume.mode."""

import shutil
from pathlib import Path

import pytest
from conftest import SMALL, Command
from small_runs import SAMPLES, rows_of, small_config, state_of, train, trainer_of

from cosmos_hydra import runs
from cosmos_hydra.errors import ConfigError


@pytest.fixture(scope="module")
def finished(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of 2 steps; do not write into it."""
    run = tmp_path_factory.mktemp("finished")
    train(small_config(small_samples, "trainer.max_steps=2"), run)
    return run


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("seed=1", "seed: 0 -> 1"),
        ("model.num_layers=3", "model.num_layers: 2 -> 3"),
        ("trainer.global_batch_size=4", "trainer.global_batch_size: 2 -> 4"),
        ("model.objective.text_dropout=0.5", "model.objective.text_dropout: 0.2 -> 0.5"),
        ("optim.betas=[0.9,0.95]", "optim.betas: [0.9, 0.999] -> [0.9, 0.95]"),
    ],
)
def test_a_change_that_makes_resuming_unsafe_is_refused_with_the_difference(
    small_samples: Path, finished: Path, override: str, difference: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        trainer_of(small_config(small_samples, override), finished)
    assert str(refusal.value) == (
        f"name=tiny-synthetic is a run with another config: {difference}; "
        "choose another name or resume.mode=fresh"
    )


def test_other_samples_are_refused(small_samples: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(small_samples / SAMPLES, tmp_path / SAMPLES)
    # the same samples in another place are the same data
    trainer_of(small_config(tmp_path), finished)
    manifest = tmp_path / SAMPLES / "manifest.json"
    text = manifest.read_text()
    position = text.index('"content_hash": "') + len('"content_hash": "')
    manifest.write_text(f"{text[:position]}{'0' * 64}{text[position + 64 :]}")
    with pytest.raises(ConfigError, match=r"another config: the samples in data\.path; choose"):
        trainer_of(small_config(tmp_path), finished)


@pytest.mark.parametrize(
    "override",
    ["optim.lr=0.5", "trainer.micro_batch_size=1", "trainer.save_every=1", "optim.weight_decay=1"],
)
def test_a_harmless_change_is_allowed(
    small_samples: Path, finished: Path, tmp_path: Path, override: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    trainer = train(small_config(small_samples, override, "trainer.max_steps=3"), run)
    assert trainer.step == 3
    if override == "optim.lr=0.5":
        assert [row["lr"] for row in rows_of(run) if "loss" in row] == [1e-3, 1e-3, 0.5]


def test_the_command_line_refuses_with_exit_code_2_and_leaves_the_run_alone(
    command: Command, small_samples: Path, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "tiny-synthetic"
    shutil.copytree(finished, run)
    before = sorted(run.rglob("*.distcp"))
    typed = ["stage=post_train", *SMALL, f"data.path={small_samples / SAMPLES}"]
    refused = command(*typed, "seed=1", cwd=tmp_path)
    assert (refused.code, refused.stderr) == (
        2,
        (
            "cosmos-hydra: name=tiny-synthetic is a run with another config: seed: 0 -> 1; "
            "choose another name or resume.mode=fresh\n"
        ),
    )
    assert sorted(run.rglob("*.distcp")) == before


def test_never_refuses_an_existing_run_and_fresh_takes_the_next_number(
    command: Command, small_samples: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "runs" / "one")
    typed = ["stage=post_train", *SMALL, f"data.path={small_samples / SAMPLES}", "name=one"]
    typed += ["trainer.max_steps=1"]
    refused = command(*typed, "resume.mode=never", cwd=tmp_path)
    assert (refused.code, refused.stderr) == (
        2,
        (
            "cosmos-hydra: resume.mode=never but runs/one holds step 2; "
            "choose another name or resume.mode=auto\n"
        ),
    )
    for number in (2, 3):
        fresh = command(*typed, "resume.mode=fresh", cwd=tmp_path)
        assert fresh.code == 0
        assert runs.steps(tmp_path / "runs" / f"one-{number}") == [1]
    assert runs.steps(tmp_path / "runs" / "one") == [2]
    first, second = (state_of(tmp_path / "runs" / f"one-{number}", 1) for number in (2, 3))
    assert all(first[name].equal(second[name]) for name in first)
    new = command(*typed[:-2], "name=two", "resume.mode=never", "trainer.max_steps=1", cwd=tmp_path)
    assert new.code == 0
    assert runs.steps(tmp_path / "runs" / "two") == [1]
