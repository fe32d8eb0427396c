"""The validation loss: fixed cases, so that steps, runs and the two baselines compare."""

from pathlib import Path

import pytest
import torch
from small_runs import rows_of, small_config, train, trainer_of

from cosmos_hydra.data.clips import HELD_OUT
from cosmos_hydra.data.store import SampleStore, open_store
from cosmos_hydra.engines.torch.validation import Validation

BASELINES = ("gaussian_loss", "linear_loss")
THREE_SIGMAS = ("trainer.validation_sigmas=3", "model.objective.p_mean=0.0")


@pytest.fixture(scope="module")
def finished(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of 4 steps, validated at 0, 2 and 4."""
    run = tmp_path_factory.mktemp("finished")
    train(small_config(small_samples, *THREE_SIGMAS), run)
    return run


def validations(run: Path) -> list[dict]:
    return [row for row in rows_of(run) if "val_loss" in row]


def test_validation_begins_before_the_first_step_and_is_never_a_training_row(
    finished: Path,
) -> None:
    rows = rows_of(finished)
    assert "val_loss" in rows[0]
    assert [row["step"] for row in validations(finished)] == [0, 2, 4]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert not any("loss" in row for row in validations(finished))


def test_a_validation_row_has_the_loss_the_baselines_and_each_at_every_sigma(
    finished: Path,
) -> None:
    names = ("0.38", "1", "2.63")  # exp of the normal quantiles 1/6, 1/2 and 5/6
    for row in validations(finished):
        assert list(row)[:4] == ["step", "val_loss", *BASELINES]
        per_sigma = [f"{kind}_sigma_{name}" for name in names for kind in ("val_loss", *BASELINES)]
        assert list(row)[4:] == per_sigma
        for kind in ("val_loss", *BASELINES):
            mean = sum(row[f"{kind}_sigma_{name}"] for name in names) / len(names)
            assert row[kind] == pytest.approx(mean, rel=1e-6)


def test_the_baselines_are_constant_and_the_loss_moves(finished: Path) -> None:
    rows = validations(finished)
    for name in BASELINES:
        assert len({row[name] for row in rows}) == 1
    assert len({row["val_loss"] for row in rows}) == 3


def test_identical_weights_have_identical_losses_in_another_run(
    small_samples: Path, finished: Path, tmp_path: Path
) -> None:
    overrides = [*THREE_SIGMAS, "trainer.max_steps=1", "optim.lr=0.1"]
    config = small_config(small_samples, *overrides, f"resume.path={finished}")
    train(config, tmp_path)
    assert {**validations(tmp_path)[0], "step": 4} == validations(finished)[-1]


@pytest.mark.parametrize("micro", [1, 3])
def test_the_micro_batch_size_does_not_matter(
    small_samples: Path, finished: Path, tmp_path: Path, micro: int
) -> None:
    config = small_config(
        small_samples,
        *THREE_SIGMAS,
        f"trainer.global_batch_size={micro}",
        f"trainer.micro_batch_size={micro}",
        f"resume.path={finished}",
    )
    trainer = trainer_of(config, tmp_path)
    row = Validation(config, trainer.store).run(trainer.denoiser, trainer.ranks, trainer.autocast)
    assert row is not None
    for name, value in row.items():
        assert value == pytest.approx(validations(finished)[-1][name], rel=1e-5)
    assert trainer.denoiser.training


def test_untrained_weights_score_as_the_skip_connection_alone(
    small_samples: Path, finished: Path
) -> None:
    # the first prediction is zero, so the estimate is c_skip * noisy
    config = small_config(small_samples, *THREE_SIGMAS)
    validation = Validation(config, open_store(config.data.path))
    losses = []
    for case in validation.cases:
        for index, sigma in enumerate(validation.sigma_B.tolist()):
            clean = case.clean_1CFHW[0].double()
            estimate = 0.25 / (sigma**2 + 0.25) * case.noisy_BCFHW[index].double()
            weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
            losses.append(weight * ((estimate - clean) ** 2).mean().item())
    first = validations(finished)[0]
    assert first["val_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_cases_are_held_out_clips_and_the_same_for_every_run(small_samples: Path) -> None:
    config = small_config(small_samples)
    store = open_store(config.data.path)
    one, other = Validation(config, store), Validation(config, store)
    assert one.is_held_out
    assert {case.sample.id for case in one.cases} <= set(store.splits[HELD_OUT])
    assert len(one.cases) == 2
    for case, again in zip(one.cases, other.cases, strict=True):
        assert torch.equal(case.noisy_BCFHW, again.noisy_BCFHW)
        assert not torch.equal(case.noisy_BCFHW[0], case.noisy_BCFHW[1])


def test_without_held_out_samples_the_training_samples_are_used_with_a_warning(
    small_samples: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(small_samples, "trainer.max_steps=1")
    trainer = trainer_of(config, tmp_path)
    manifest = trainer.store.manifest
    samples = [{**entry, "split": "train"} for entry in manifest["samples"]]
    trainer.store = SampleStore(trainer.store.layout, {**manifest, "samples": samples})
    trainer.train()
    assert "nothing is held out: the validation loss is on training samples" in caplog.messages
    assert [row["step"] for row in validations(tmp_path)] == [0, 1]
