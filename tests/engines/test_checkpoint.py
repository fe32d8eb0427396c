"""Checkpoints on disk: what they hold, which are kept, and what a damaged one does."""

import json
import logging
import resource
import shutil
from pathlib import Path

import pytest
import torch
from small_runs import (
    FPS,
    assert_same_tensors,
    rows_of,
    small_config,
    state_of,
    train,
    trainer_of,
)

from cosmos_hydra import files, runs
from cosmos_hydra.engines.torch.checkpoint import newest, open_checkpoint, prune
from cosmos_hydra.engines.torch.saving import Saver
from cosmos_hydra.engines.torch.state import table_of
from cosmos_hydra.errors import StageError


@pytest.fixture(scope="module")
def finished(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with checkpoints at steps 2 and 4; do not write into it."""
    run = tmp_path_factory.mktemp("finished")
    train(small_config(small_samples), run)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of that run."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_a_checkpoint_holds_weights_optimizer_tokenizer_and_a_manifest_with_hashes(
    finished: Path, small_samples: Path
) -> None:
    folder = runs.step_folder(finished, 4)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["step"] == 4
    assert manifest["fps"] == FPS
    assert manifest["config"]["model"]["num_layers"] == 2
    assert manifest["tokenizer"]["kind"] == "toy"
    assert manifest["text_encoder"] == {"kind": "hash", "num_tokens": 16, "dim": 1024}
    assert all("robot arm" in caption for caption in manifest["captions"])
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert set(manifest["files"]) == found - {"manifest.json"}
    assert set(manifest["files"]) == {
        "state/.metadata",
        "state/__0_0.distcp",
        "tokenizer.safetensors",
        "transformer/config.json",
    }
    for name, digest in manifest["files"].items():
        assert files.sha256_of(folder / name) == digest


def test_a_checkpoint_is_the_state_in_memory_bitwise(small_samples: Path, tmp_path: Path) -> None:
    trainer = train(small_config(small_samples, "trainer.max_steps=3"), tmp_path)
    state = state_of(tmp_path, 3)
    weights = trainer.transformer.state_dict()
    assert len(state) == 4 * len(weights)
    assert all(tensor.equal(state[f"weight.{name}"]) for name, tensor in weights.items())
    for name, parameter in trainer.transformer.named_parameters():
        kept = trainer.optimizer.state[parameter]
        assert kept.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(tensor.equal(state[f"{kind}.{name}"]) for kind, tensor in kept.items())
        assert state[f"step.{name}"].item() == 3
    resumed = trainer_of(small_config(small_samples, "trainer.max_steps=3"), tmp_path)
    for one, other in zip(
        trainer.transformer.parameters(), resumed.transformer.parameters(), strict=True
    ):
        assert torch.equal(one, other)
        ours, theirs = trainer.optimizer.state[one], resumed.optimizer.state[other]
        assert all(torch.equal(ours[kind], theirs[kind]) for kind in ours)


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [3, 4]), (0, [1, 2, 3, 4])])
def test_only_the_newest_checkpoints_are_kept(
    small_samples: Path, tmp_path: Path, keep: int, left: list[int]
) -> None:
    overrides = [f"trainer.keep={keep}", "trainer.save_every=1", "trainer.validate_every=0"]
    train(small_config(small_samples, *overrides), tmp_path)
    assert runs.steps(tmp_path) == left
    assert len(list((tmp_path / "checkpoints").iterdir())) == len(left)


def test_a_checkpoint_half_removed_no_longer_counts(run: Path) -> None:
    prune(run, 1, 4)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000004"]
    (runs.step_folder(run, 4) / "manifest.json").unlink()
    assert newest(run) is None


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("state/__0_0.distcp", r"is damaged: state/__0_0\.distcp has changed"),
        ("state/.metadata", r"is damaged: state/\.metadata has changed"),
        ("transformer/config.json", r"is damaged: transformer/config\.json has changed"),
        ("manifest.json", r"has no readable manifest\.json \(.*\)"),
    ],
)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    run: Path,
    small_samples: Path,
    finished: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    message: str,
) -> None:
    damaged = runs.step_folder(run, 4) / name
    if name == "manifest.json":
        damaged.write_text(damaged.read_text()[:-20])
    else:
        damage(damaged)
    with pytest.raises(StageError, match=message):
        open_checkpoint(damaged.parents[name.count("/")])
    with caplog.at_level(logging.WARNING):
        trainer = trainer_of(small_config(small_samples), run)
    assert trainer.step == 2
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"checkpoint {runs.step_folder(run, 4)} ")
    assert warning.endswith("; trying the one before")
    trainer.train()
    assert rows_of(run) == rows_of(finished)
    assert_same_tensors(state_of(run, 4), state_of(finished, 4))


def test_a_missing_file_is_named(run: Path) -> None:
    (runs.step_folder(run, 4) / "state/__0_0.distcp").unlink()
    with pytest.raises(StageError, match=r"step_000004 lacks state/__0_0\.distcp$"):
        open_checkpoint(runs.step_folder(run, 4))


def test_a_checkpoint_of_a_later_program_is_refused_with_both_versions(run: Path) -> None:
    path = runs.step_folder(run, 4) / "manifest.json"
    files.write_json(path, {**json.loads(path.read_text()), "format_version": 7})
    with pytest.raises(StageError, match=r"has format_version 7; this program reads 2$"):
        open_checkpoint(path.parent)


def test_a_run_without_an_intact_checkpoint_does_not_start_over_silently(
    run: Path, small_samples: Path
) -> None:
    for step in (2, 4):
        damage(runs.step_folder(run, step) / "state/__0_0.distcp")
    with pytest.raises(StageError, match=r"has no intact checkpoint; use resume\.mode=fresh$"):
        trainer_of(small_config(small_samples), run)


def test_what_a_kill_left_behind_is_ignored_and_replaced(run: Path, small_samples: Path) -> None:
    checkpoints = run / "checkpoints"
    shutil.copytree(runs.step_folder(run, 4), checkpoints / "step_000006.tmp")
    shutil.copytree(runs.step_folder(run, 4), checkpoints / "step_000005")
    (checkpoints / "step_000005" / "manifest.json").unlink()
    (checkpoints / "step_abc").mkdir()
    (checkpoints / "step_abc" / "manifest.json").write_text("{}")
    assert runs.steps(run) == [2, 4]
    overrides = ["trainer.max_steps=6", "trainer.save_every=1", "trainer.keep=0"]
    train(small_config(small_samples, *overrides), run)
    assert runs.steps(run) == [2, 4, 5, 6]
    assert not (checkpoints / "step_000006.tmp").exists()
    assert open_checkpoint(checkpoints / "step_000005").step == 5


@pytest.mark.parametrize("name", ["state/__0_0.distcp", "state/.metadata"])
def test_a_disk_that_does_not_take_a_checkpoint_is_one_line_and_keeps_the_others(
    run: Path, small_samples: Path, name: str
) -> None:
    limit_bytes = (runs.step_folder(run, 4) / name).stat().st_size - 1
    trainer = trainer_of(small_config(small_samples), run)
    saver = Saver(run, trainer.ranks, trainer.config.model, 2, None)
    table = table_of(trainer.transformer, trainer.optimizer)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        saver.save(6, table, {})
        with pytest.raises(
            StageError, match=r"step_000006 cannot be written \(File too large\); allow"
        ):
            saver.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        saver.close()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step_000002",
        "step_000004",
    ]
    assert open_checkpoint(runs.step_folder(run, 4)).step == 4
