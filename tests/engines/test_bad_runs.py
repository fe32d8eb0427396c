"""Data and losses that stop a run: one line that names the cause, and nothing lost."""

import shutil
from pathlib import Path

import pytest
from conftest import SMALL, Command
from small_runs import SAMPLES, small_config, train

from cosmos_hydra import runs
from cosmos_hydra.data.loader import sample_ids
from cosmos_hydra.data.store import open_store
from cosmos_hydra.errors import StageError


def test_clips_of_another_size_are_refused_with_both_sizes(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    path = small_samples / SAMPLES
    typed = ["stage=post_train", *SMALL, f"data.path={path}"]
    for wrong, shown in (
        ("data.frames=17", "data.frames=17 data.height=48 data.width=64"),
        ("data.height=64", "data.frames=9 data.height=64 data.width=64"),
    ):
        refused = command(*typed, wrong, cwd=tmp_path)
        assert (refused.code, refused.stderr) == (
            2,
            (
                f"cosmos-hydra: data.path={path} holds clips of 9 frames at 48x64, not {shown}; "
                "set these to the samples' numbers\n"
            ),
        )
    assert not list(tmp_path.rglob("checkpoints"))


def test_a_sample_that_goes_missing_during_training_is_named(
    small_samples: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_samples / SAMPLES, tmp_path / SAMPLES)
    config = small_config(tmp_path, "trainer.validate_every=0", "trainer.preview_every=0")
    name = sample_ids(open_store(config.data.path).splits["train"], 0, 2, 2)[0]
    (tmp_path / SAMPLES / f"{name}.video_latent.safetensors").unlink()
    with pytest.raises(StageError, match=f"sample {name} cannot be read .*; remove the folder"):
        train(config, tmp_path / "run")
    assert runs.steps(tmp_path / "run") == [2]
