"""What only a CUDA device can show; skipped without one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, Command
from distributed_cases import train
from small_runs import generate, state_of

from cosmos_hydra.data.video import decode
from cosmos_hydra.engines.torch.staging import Staging

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
MATRIX_PRODUCT = """
from cosmos_hydra.data.decoder import decord
import torch
ones = torch.ones(512, 512)
assert bool(((ones @ ones) == 512).all()), "matrix product is wrong"
maps = open("/proc/self/maps").read()
assert "libnvblas" not in maps, "libnvblas is loaded"
"""


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    state = state_of(folder / "runs/tiny-synthetic", step)
    return {name: tensor for name, tensor in state.items() if name.startswith("weight.")}


def test_importing_decord_first_leaves_matrix_products_right() -> None:
    subprocess.run([sys.executable, "-c", MATRIX_PRODUCT], check=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_pipeline_runs_on_the_gpu_and_a_resumed_run_ends_where_an_uninterrupted_one_does(
    command: Command, tmp_path: Path, precision: str
) -> None:
    folders = [tmp_path / "whole", tmp_path / "parts"]
    for folder in folders:
        folder.mkdir()
    settings = ("stage=pipeline", *SMALL, f"parallel.precision={precision}", "engine.device=cuda")
    assert command(*settings, cwd=folders[0]).code == 0
    assert command(*settings, "trainer.max_steps=2", cwd=folders[1]).code == 0
    resumed = command(*settings, cwd=folders[1])
    assert resumed.code == 0, resumed
    assert "resuming step 2/4" in resumed.stdout
    whole, parts = (weights(folder, 4) for folder in folders)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-6)
    manifest = json.loads(
        (folders[0] / "runs/tiny-synthetic/checkpoints/step_000004/manifest.json").read_text()
    )
    effective = manifest["effective"]
    assert (effective["device"], effective["precision"]) == ("cuda", precision)
    assert effective["attention"] in ("cudnn", "flash", "efficient")


def test_bf16_validation_is_close_to_fp32(command: Command, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        outcome = command(
            "stage=pipeline",
            *SMALL,
            "pipeline.stages=[preprocess,post_train]",
            f"parallel.precision={precision}",
            f"name={precision}",
            cwd=tmp_path,
        )
        assert outcome.code == 0, outcome
        rows = (tmp_path / f"runs/{precision}/metrics.jsonl").read_text().splitlines()
        losses[precision] = [row["val_loss"] for row in map(json.loads, rows) if "val_loss" in row]
    for exact, rounded in zip(losses["fp32"], losses["bf16"], strict=True):
        assert rounded == pytest.approx(exact, rel=0.02)


def test_recompute_and_compile_train_on_the_gpu(command: Command, tmp_path: Path) -> None:
    outcome = command(
        "stage=pipeline",
        *SMALL,
        "pipeline.stages=[preprocess,post_train]",
        "parallel.recompute=full",
        "parallel.compile=true",
        cwd=tmp_path,
    )
    assert outcome.code == 0, outcome


def test_a_run_from_given_weights_finds_training_and_sampling_alike(
    command: Command, tmp_path: Path
) -> None:
    settings = ("stage=pipeline", *SMALL, "pipeline.stages=[preprocess,post_train]")
    assert command(*settings, "engine.device=cuda", cwd=tmp_path).code == 0
    given = ("stage=post_train", *SMALL, "resume.path=runs/tiny-synthetic", "name=next")
    for more in ((), ("parallel.compile=true",), ("parallel.recompute=full",)):
        done = command(*given, *more, "resume.mode=fresh", "engine.device=cuda", cwd=tmp_path)
        assert (done.code, done.stderr) == (0, "")
        assert "training and sampling differ by " in done.stdout
        assert "(tolerance 5e-02 in bf16)" in done.stdout


def test_compiled_generation_makes_the_same_video(small_samples: Path, tmp_path: Path) -> None:
    train(small_samples, ("engine.device=cuda", "optim.lr=1e-2"), tmp_path / "run")
    frames = {}
    for value in ("false", "true"):
        typed = ("generate.prompt=a robot", "engine.device=cuda", f"generate.compile={value}")
        (video,) = generate(tmp_path / "run", tmp_path / value, *typed)
        frames[value] = decode(video, list(range(9))).float()
    assert (frames["true"] - frames["false"]).abs().mean() < 2


def test_checkpoints_are_copied_beside_the_next_step_and_are_of_their_own(
    small_samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ("trainer.max_steps=3", "trainer.save_every=1", "trainer.keep=0", "engine.device=cuda")
    typed = (*typed, "optim.lr=1e-2", "log.report=false")
    with monkeypatch.context() as changes:
        changes.setattr(Staging, "before_update", lambda self: torch.cuda.synchronize())
        train(small_samples, typed, tmp_path / "waiting")
    copy, pinned = Staging.copy, []

    def copy_late(self: Staging, table: Any) -> Any:
        assert self.stream is not None
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(500_000_000)  # longer than the next step
        copies = copy(self, table)
        pinned.extend(tensor.is_pinned() for tensor in copies.values())
        return copies

    monkeypatch.setattr(Staging, "copy", copy_late)
    train(small_samples, typed, tmp_path / "beside")
    assert pinned
    assert all(pinned)
    for step in (1, 2, 3):
        beside, waiting = (state_of(tmp_path / name, step) for name in ("beside", "waiting"))
        for name, tensor in waiting.items():
            torch.testing.assert_close(beside[name], tensor, rtol=1e-3, atol=1e-5)
    before, after = (state_of(tmp_path / "beside", step) for step in (1, 2))
    # at first only the gates move
    name = "weight.transformer_blocks.0.norm1.linear_2.weight"
    assert (before[name] - after[name]).abs().max() > 1e-3
