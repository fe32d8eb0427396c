"""Damage of every kind to the newest checkpoint: found before training, and the older one used."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import small_config, tensors_in, train, trainer_of

from cosmos_hydra import files, runs
from cosmos_hydra.engines.torch.checkpoint import newest, open_checkpoint
from cosmos_hydra.engines.torch.state import write
from cosmos_hydra.errors import StageError
from cosmos_hydra.reading import sealed

PART = "state/__0_0.distcp"
METADATA = "state/.metadata"
MANIFEST = "manifest.json"


@pytest.fixture(scope="module")
def finished(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with checkpoints at steps 2 and 4; do not write into it."""
    run = tmp_path_factory.mktemp("finished")
    overrides = ["trainer.validate_every=0", "log.report=false"]
    train(small_config(small_samples, *overrides), run)
    return run


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """Return the newest checkpoint in a copy of that run."""
    shutil.copytree(finished / "checkpoints", tmp_path / "run/checkpoints")
    return runs.step_folder(tmp_path / "run", 4)


def edit(folder: Path, **changes: Any) -> None:
    """Change a manifest, whole and sealed; None removes a key."""
    content = json.loads((folder / MANIFEST).read_text()) | changes
    kept = {key: value for key, value in content.items() if value is not None and key != "sha256"}
    (folder / MANIFEST).write_bytes(sealed(kept))


def relist(folder: Path, **changes: str | None) -> None:
    """Change the list of files of a manifest; None removes one."""
    hashes = json.loads((folder / MANIFEST).read_text())["files"] | changes
    edit(folder, files={name: digest for name, digest in hashes.items() if digest is not None})


def cut(path: Path, size_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:size_bytes])


def flip(path: Path, place: int, change: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= change
    path.write_bytes(content)


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _swapped(folder: Path) -> None:
    """Put the sound state of the other step in, as a copy gone wrong would."""
    shutil.copy(folder.with_name("step_000002") / PART, folder / PART)


def _another_step(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step_000002"), folder)


INCOMPLETE: dict[str, Callable[[Path], object]] = {
    "an empty folder": _emptied,
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "only what a kill leaves": lambda folder: folder.rename(f"{folder}.tmp"),
    "another name": lambda folder: folder.rename(folder.with_name("step_4")),
}
# what happened to the newest checkpoint, and what is said about it
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "an empty manifest": (lambda f: cut(f / MANIFEST, 0), r"has no readable manifest\.json \("),
    "a manifest cut short": (lambda f: cut(f / MANIFEST, 400), r"has no readable manifest\.json"),
    "a manifest that is a list": (
        lambda f: (f / MANIFEST).write_text("[]"),
        r"manifest\.json \(no JSON object\)",
    ),
    "a manifest that is binary": (
        lambda f: (f / MANIFEST).write_bytes(b"\x80\x04\xff"),
        r"has no readable manifest\.json \(.*utf-8",
    ),
    "a manifest with a changed bit": (
        lambda f: flip(f / MANIFEST, (f / MANIFEST).stat().st_size - 10),
        r"manifest\.json \(it has changed since it was written\)",
    ),
    "a newer format": (
        lambda f: edit(f, format_version=99),
        r"has format_version 99; this program reads 2",
    ),
    "no format": (lambda f: edit(f, format_version=None), r"has format_version None;"),
    "no seal": (
        lambda f: files.write_json(f / MANIFEST, {"format_version": 2}),
        r"\(sha256, step, files, config, data, captions, fps missing or of another type\)",
    ),
    "no config": (lambda f: edit(f, config=None), r"\(config missing or of another type\)"),
    "a config with other keys": (
        lambda f: edit(f, config={"model": {"_target_": "os.system"}}),
        r"manifest\.json \(its config does not fit: .*_target_",
    ),
    "no data": (lambda f: edit(f, data=None), r"\(data missing or of another type\)"),
    "no files": (lambda f: edit(f, files=None), r"\(files missing or of another type\)"),
    "files that are a list": (lambda f: edit(f, files=[]), r"\(files missing or of another type\)"),
    "no file listed": (lambda f: edit(f, files={}), r"its manifest lacks state/\.metadata"),
    "another step": (lambda f: edit(f, step=2), r"manifest\.json \(it is of step 2\)"),
    "the files of another step": (_another_step, r"manifest\.json \(it is of step 2\)"),
    "a step that is no number": (lambda f: edit(f, step="4"), r"\(step missing or of another"),
    "no state": (lambda f: shutil.rmtree(f / "state"), r"lacks state/\.metadata"),
    "no metadata": (lambda f: (f / METADATA).unlink(), r"lacks state/\.metadata"),
    "metadata short by a byte": (
        lambda f: cut(f / METADATA, -1),
        r"is damaged: state/\.metadata has changed",
    ),
    "no transformer": (lambda f: shutil.rmtree(f / "transformer"), r"lacks transformer/config"),
    "state short by a byte": (lambda f: cut(f / PART, -1), rf"is damaged: {PART} has changed"),
    "state with a changed bit": (lambda f: flip(f / PART, -1), rf"is damaged: {PART} has changed"),
    "state that is a folder": (
        lambda f: (f / PART).unlink() or (f / PART).mkdir(),
        rf"lacks {PART}",
    ),
    "state of another step": (_swapped, rf"is damaged: {PART} has changed"),
    "a tokenizer of zeros": (
        lambda f: (f / "tokenizer.safetensors").write_bytes(bytes(400)),
        r"is damaged: tokenizer\.safetensors has changed",
    ),
    "files elsewhere": (
        lambda f: relist(f, **{"../step_000002/manifest.json": "0"}),
        r"\.\./step_000002/manifest\.json cannot be read \(.* is no name of a file below",
    ),
    "a file that was never there": (
        lambda f: relist(f, **{"scheduler.safetensors": "0"}),
        r"lacks scheduler\.safetensors",
    ),
    "a part that is not listed": (
        lambda f: shutil.copy(f / PART, f / "state/__1_0.distcp"),
        r"its manifest lacks state/__1_0\.distcp",
    ),
    "a hash that is none": (
        lambda f: relist(f, **{PART: "7"}),
        rf"is damaged: {PART} has changed",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_the_reason(
    damage: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    do, message = DAMAGES[damage]
    do(folder)
    with pytest.raises(StageError, match=f"^checkpoint {folder} .*{message}"):
        open_checkpoint(folder)
    with caplog.at_level(logging.WARNING):
        found = newest(folder.parents[1])
    assert found is not None
    assert found.step == 2
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"checkpoint {folder} ")
    assert warning.endswith("; trying the one before")


@pytest.mark.parametrize("what", INCOMPLETE)
def test_an_incomplete_checkpoint_is_passed_over_and_named(
    what: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    INCOMPLETE[what](folder)
    with caplog.at_level(logging.INFO):
        found = newest(folder.parents[1])
    assert found is not None
    assert found.step == 2
    (left,) = [path for path in folder.parent.iterdir() if path.name != "step_000002"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"{left} is no complete checkpoint and is not used"


def test_an_intact_checkpoint_is_taken_without_a_word(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(folder)
    with caplog.at_level(logging.INFO):
        found = newest(folder.parents[1])
    assert found is not None
    assert (found.step, caplog.records) == (4, [])


@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_changed_byte_anywhere_is_found_before_training(count: int, folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(paths) == 5
    generator = np.random.default_rng(count)
    for number in range(count):
        path = paths[number % len(paths)]
        whole = path.read_bytes()
        flip(path, int(generator.integers(len(whole))), int(generator.integers(1, 256)))
        with pytest.raises(StageError):
            open_checkpoint(folder)
        path.write_bytes(whole)
    assert open_checkpoint(folder).step == 4


def replace_state(folder: Path, table: dict[str, torch.Tensor]) -> None:
    """Write another state into a checkpoint, whose manifest knows it."""
    shutil.rmtree(folder / "state")
    write(table, folder / "state", None)
    relist(folder, **{name: files.sha256_of(folder / name) for name in (PART, METADATA)})


def test_state_of_another_model_is_one_line_with_every_difference(
    folder: Path, small_samples: Path
) -> None:
    table = tensors_in(folder / "state")
    del table["weight.proj_out.weight"]
    table["exp_avg.proj_out.weight"] = torch.zeros(2)
    table["exp_avg_sq.proj_out.weight"] = table["exp_avg_sq.proj_out.weight"].int()
    table["step.blocks.7.weight"] = torch.zeros(())
    table["momentum.proj_out.weight"] = torch.zeros(2)
    replace_state(folder, table)
    with pytest.raises(StageError) as refusal:
        trainer_of(small_config(small_samples), folder.parents[1])
    before, _, problems = str(refusal.value).partition(" does not fit the model: ")
    assert before == f"checkpoint {folder}"
    shape = list(table["exp_avg_sq.proj_out.weight"].shape)
    assert set(problems.split("; ")) == {
        "missing weight.proj_out.weight",
        f"exp_avg.proj_out.weight is [2], not {shape}",
        "exp_avg_sq.proj_out.weight is int32, not a floating type",
        "unexpected step.blocks.7.weight",
        "unexpected momentum.proj_out.weight",
    }


def test_state_that_only_its_hash_vouches_for_is_one_line(
    folder: Path, small_samples: Path
) -> None:
    whole = (folder / PART).read_bytes()
    for content in (b"", whole[: len(whole) // 2], bytes(len(whole))):
        (folder / PART).write_bytes(content)
        relist(folder, **{PART: files.sha256_of(folder / PART)})
        with pytest.raises(StageError, match=rf"^checkpoint {folder} cannot be read \(.+\)$"):
            trainer_of(small_config(small_samples), folder.parents[1])


def test_weights_alone_are_taken_from_a_checkpoint_with_any_optimizer_state(
    folder: Path, small_samples: Path, tmp_path: Path
) -> None:
    table = tensors_in(folder / "state")
    weights = {name: tensor for name, tensor in table.items() if name.startswith("weight.")}
    replace_state(folder, weights)
    config = small_config(small_samples, f"resume.path={folder}")
    transformer = trainer_of(config, tmp_path / "next").transformer
    for name, parameter in transformer.named_parameters():
        assert torch.equal(parameter, weights[f"weight.{name}"])
    replace_state(folder, {"weight.proj_out.weight": torch.zeros(1)})
    with pytest.raises(StageError, match=r" does not fit the model: .*; and \d+ more$"):
        trainer_of(config, tmp_path / "next")
