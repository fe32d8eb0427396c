"""Where a run's first weights come from: a run, a step, a diffusers folder, or nothing."""

import json
from pathlib import Path

import pytest
from conftest import SMALL, Command
from small_runs import SAMPLES, rows_of, small_config, state_of, train, trainer_of

from cosmos_hydra import runs
from cosmos_hydra.engines.torch.trainer import Trainer
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.job import Job
from cosmos_hydra.runs import MANIFEST
from cosmos_hydra.stages.export import run as stage_export
from cosmos_hydra.weights.locate import locate


@pytest.fixture(scope="module")
def source(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with checkpoints at steps 2 and 4, and the weights of step 2 as other formats.

    Do not write into it.
    """
    run = tmp_path_factory.mktemp("source")
    train(small_config(small_samples), run)
    given = f"checkpoint={runs.step_folder(run, 2)}"
    for name in ("diffusers", "original", "nemo"):
        typed = ("stage=export", given, f"export.format={name}", f"export.path={run / name}")
        stage_export(small_config(small_samples, *typed, "export.dtype=fp32"), Job(run, typed))
    return run


def assert_weights_of(trainer: Trainer, run: Path, step: int) -> None:
    state, saved = trainer.transformer.state_dict(), state_of(run, step)
    assert {f"weight.{name}" for name in state} == {n for n in saved if n.startswith("weight.")}
    assert all(tensor.equal(saved[f"weight.{name}"]) for name, tensor in state.items())


@pytest.mark.parametrize("key", ["resume.path", "model.weights.path"])
@pytest.mark.parametrize(
    ("below", "step"),
    [
        ("", 4),
        ("checkpoints/step_000002", 2),
        ("diffusers", 2),
        ("original", 2),
        ("original/model.pt", 2),
        ("nemo", 2),
    ],
)
def test_a_new_run_starts_bitwise_from_given_weights_at_step_0(
    small_samples: Path, source: Path, tmp_path: Path, key: str, below: str, step: int
) -> None:
    trainer = trainer_of(small_config(small_samples, f"{key}={source / below}"), tmp_path)
    assert trainer.step == 0
    assert_weights_of(trainer, source, step)
    for kept in trainer.optimizer.state.values():
        assert not any(tensor.any() for tensor in kept.values())


def test_a_folder_whose_transformer_lies_one_below_is_a_diffusers_folder(
    small_samples: Path, source: Path, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    release.mkdir()
    (release / "transformer").symlink_to(source / "diffusers")
    trainer = trainer_of(small_config(small_samples, f"resume.path={release}"), tmp_path / "run")
    assert_weights_of(trainer, source, 2)


def test_the_own_checkpoint_goes_before_the_given_weights(
    small_samples: Path, source: Path, tmp_path: Path
) -> None:
    overrides = [f"resume.path={source}", "trainer.max_steps=1", "trainer.validate_every=0"]
    train(small_config(small_samples, *overrides), tmp_path)
    again = trainer_of(small_config(small_samples, *overrides, "trainer.max_steps=2"), tmp_path)
    assert again.step == 1
    assert_weights_of(again, tmp_path, 1)


def test_a_run_from_given_weights_counts_its_own_steps(
    command: Command, small_samples: Path, source: Path, tmp_path: Path
) -> None:
    typed = ["stage=post_train", *SMALL, f"data.path={small_samples / SAMPLES}"]
    for name, path, what in (
        ("next", source, f"step 4 of {source}"),
        ("other", source / "nemo", f"NeMo checkpoint (zarr) {source / 'nemo'}"),
    ):
        given = (f"name={name}", f"resume.path={path}", "trainer.max_steps=1")
        outcome = command(*typed, *given, cwd=tmp_path)
        assert outcome.code == 0
        digest = locate(str(path), "resume.path").digest
        assert f"starting from {what} (sha256 {digest[:12]})" in outcome.stdout
        assert [row["step"] for row in rows_of(tmp_path / "runs" / name)] == [0, 1, 1]
        folder = runs.step_folder(tmp_path / "runs" / name, 1)
        manifest = json.loads((folder / MANIFEST).read_text())
        assert manifest["base"]["sha256"] == digest


@pytest.mark.parametrize("key", ["resume.path", "model.weights.path"])
def test_weights_of_another_architecture_are_refused_with_the_numbers(
    command: Command, small_samples: Path, source: Path, tmp_path: Path, key: str
) -> None:
    typed = ["stage=post_train", *SMALL, f"data.path={small_samples / SAMPLES}"]
    refused = command(*typed, f"{key}={source}", "model.num_layers=3", cwd=tmp_path)
    folder = runs.step_folder(source, 4)
    assert (refused.code, refused.stderr) == (
        2,
        (
            f"cosmos-hydra: {key}={folder} is another architecture: num_layers 2 "
            "(model=tiny has 3); choose the model= it belongs to, or other weights\n"
        ),
    )


def test_a_path_that_is_nothing_is_refused_with_what_it_lacks(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    (tmp_path / "step_000002").mkdir()
    neither = (
        "is neither a run, a step of a run, nor weights of diffusers, the original code or NeMo"
    )
    young = "holds no complete checkpoint; train it further first"
    for path, what in (
        ("nowhere", "does not exist"),
        ("empty", neither),
        ("young", young),
        ("step_000002", young),
    ):
        with pytest.raises(ConfigError) as refusal:
            locate(str(tmp_path / path), "checkpoint")
        assert str(refusal.value) == f"checkpoint={tmp_path / path} {what}"
    typed = ["stage=post_train", *SMALL, f"data.path={small_samples / SAMPLES}"]
    refused = command(*typed, "resume.path=nowhere", cwd=tmp_path)
    assert refused.code == 2
    assert refused.stderr == "cosmos-hydra: resume.path=nowhere does not exist\n"


def test_a_run_stands_for_its_newest_checkpoint(source: Path) -> None:
    found = locate(str(source), "checkpoint")
    assert found.checkpoint is not None
    assert found.checkpoint.step == 4
    assert found.path == runs.step_folder(source, 4)
    assert str(found) == f"step 4 of {source}"
    folder = runs.step_folder(source, 2)
    assert str(locate(str(folder), "checkpoint")) == f"step 2 of {source}"
    foreign = locate(str(source / "diffusers"), "checkpoint")
    assert foreign.checkpoint is None
    assert str(foreign) == f"diffusers folder {source / 'diffusers'}"
