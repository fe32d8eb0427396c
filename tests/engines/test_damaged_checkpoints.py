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
from safetensors.torch import save_file
from small_runs import small_config, train, trainer_of

from cosmos_hydra import files, runs
from cosmos_hydra.engines.torch.checkpoint import newest, open_checkpoint
from cosmos_hydra.errors import StageError
from cosmos_hydra.reading import sealed

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
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
    """Put the sound optimizer state of the other step in, as a copy gone wrong would."""
    shutil.copy(folder.with_name("step_000002") / "optimizer.safetensors", folder)


def _another_step(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step_000002"), folder)


def _a_shard_more(folder: Path) -> None:
    save_file({}, folder / "transformer/more.safetensors")
    index = {"weight_map": {"x": "more.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


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
        r"has format_version 99; this program reads 1",
    ),
    "no format": (lambda f: edit(f, format_version=None), r"has format_version None;"),
    "no seal": (
        lambda f: files.write_json(f / MANIFEST, {"format_version": 1}),
        r"\(sha256, step, files, config, data, captions, fps missing or of another type\)",
    ),
    "no config": (lambda f: edit(f, config=None), r"\(config missing or of another type\)"),
    "no data": (lambda f: edit(f, data=None), r"\(data missing or of another type\)"),
    "no files": (lambda f: edit(f, files=None), r"\(files missing or of another type\)"),
    "files that are a list": (lambda f: edit(f, files=[]), r"\(files missing or of another type\)"),
    "no file listed": (lambda f: edit(f, files={}), r"its manifest lacks optimizer\.safetensors"),
    "another step": (lambda f: edit(f, step=2), r"manifest\.json \(it is of step 2\)"),
    "the files of another step": (_another_step, r"manifest\.json \(it is of step 2\)"),
    "a step that is no number": (lambda f: edit(f, step="4"), r"\(step missing or of another"),
    "no optimizer state": (
        lambda f: (f / "optimizer.safetensors").unlink(),
        r"lacks optimizer\.safetensors",
    ),
    "no transformer": (lambda f: shutil.rmtree(f / "transformer"), r"lacks transformer/config"),
    "weights short by a byte": (
        lambda f: cut(f / WEIGHTS, -1),
        rf"is damaged: {WEIGHTS} has changed",
    ),
    "weights with a changed bit": (
        lambda f: flip(f / WEIGHTS, -1),
        rf"is damaged: {WEIGHTS} has changed",
    ),
    "weights that are a folder": (
        lambda f: (f / WEIGHTS).unlink() or (f / WEIGHTS).mkdir(),
        rf"lacks {WEIGHTS}",
    ),
    "optimizer state of another step": (
        _swapped,
        r"is damaged: optimizer\.safetensors has changed",
    ),
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
    "a shard that is not listed": (
        _a_shard_more,
        r"its manifest lacks transformer/diffusion_pytorch_model\.safetensors\.index\.json",
    ),
    "a hash that is none": (
        lambda f: relist(f, **{"optimizer.safetensors": "7"}),
        r"is damaged: optimizer\.safetensors has changed",
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


def test_optimizer_state_of_another_model_is_refused(folder: Path, small_samples: Path) -> None:
    path = folder / "optimizer.safetensors"
    save_file({"exp_avg.proj_out.weight": torch.zeros(2)}, path)
    relist(folder, **{path.name: files.sha256_of(path)})
    with pytest.raises(StageError, match=r"is damaged: optimizer\.safetensors has no exp_avg that"):
        trainer_of(small_config(small_samples), folder.parents[1])
