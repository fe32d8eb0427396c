"""The memory estimates, against the live tensors of the real classes.

Most are counted on fake tensors, which lets a clip of the released size run here.
"""

import itertools
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from guide import guide
from live_memory import LiveMemory, count_decoding_gb, count_forward_gb, count_training_gb
from small_runs import small_config, trainer_of

from cosmos_hydra.config import Config, Precision
from cosmos_hydra.engines.torch import state
from cosmos_hydra.engines.torch.degrees import degrees_of
from cosmos_hydra.engines.torch.memory import (
    Memory,
    estimate_generation,
    estimate_training,
    share_of,
    token_count,
)
from cosmos_hydra.engines.torch.step import Outcome, Stepper
from cosmos_hydra.models.fast_autoencoder import EAGER, Way

BF16, FP32 = Precision.bf16, Precision.fp32
# few layers, as counting takes time for each; frames, height and width of the clip; batch sizes
CASES = {
    "the guide's clip": (BF16, "num_layers=2", (121, 704, 1280), 1, 1),
    "the guide's clip in fp32": (FP32, "num_layers=2", (121, 704, 1280), 1, 1),
    "other heads and MLP": (BF16, "num_layers=2 num_heads=12 mlp_ratio=6.0", (57, 352, 640), 1, 1),
    "a batch": (FP32, "num_layers=2 num_heads=8 mlp_ratio=2.0", (9, 256, 320), 3, 3),
    "accumulated": (BF16, "num_layers=2 num_heads=16", (33, 480, 848), 1, 2),
    "more weights than tokens": (FP32, "num_layers=3 num_heads=8", (9, 64, 64), 1, 1),
    "much text": (BF16, "num_layers=2 num_heads=2 text_tokens=128", (9, 96, 128), 16, 16),
}


def case(sizes: str, clip: tuple[int, int, int], micro: int, batch: int, *more: str) -> Config:
    frames, height, width = clip
    return guide(
        "7b",
        *(f"model.{size}" for size in sizes.split()),
        *(f"data.frames={frames}", f"data.height={height}", f"data.width={width}"),
        *(f"trainer.micro_batch_size={micro}", f"trainer.global_batch_size={batch}"),
        *more,
    )


POLICIES = ("none", "save_matmul", "save_mlp", "save_attention", "full")
PARTLY = ("save_matmul 1", "full 1")  # one block keeps all


@pytest.mark.parametrize("recompute", [*POLICIES, *PARTLY])
@pytest.mark.parametrize("name", CASES)
def test_a_training_step_holds_what_is_estimated(name: str, recompute: str) -> None:
    precision, *numbers = CASES[name]
    policy, _, whole = recompute.partition(" ")
    policies = (f"parallel.recompute={policy}", f"parallel.recompute_except={whole or 0}")
    config = case(*numbers, *policies, "trainer.preview_every=0")
    estimate = estimate_training(config, "cpu", precision)
    expected_gb = count_training_gb(config, precision)
    tolerance = 0.1 if whole else 0.05
    assert estimate.gradients_gb + estimate.activations_gb == pytest.approx(
        expected_gb, rel=tolerance
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", [BF16, FP32], ids=str)
@pytest.mark.parametrize("recompute", POLICIES)
@pytest.mark.parametrize("model", ["7b", "14b"])
def test_a_step_of_a_released_size_holds_what_is_estimated(
    model: str, recompute: str, precision: Precision
) -> None:
    config = guide(model, f"parallel.recompute={recompute}", "trainer.preview_every=0")
    estimate = estimate_training(config, "cpu", precision)
    expected_gb = count_training_gb(config, precision)
    assert estimate.gradients_gb + estimate.activations_gb == pytest.approx(expected_gb, rel=0.03)


def test_a_run_of_the_trainer_holds_what_is_estimated(
    small_samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With optimizer state and all, on real tensors, and a step while a checkpoint is written."""
    overrides = ["trainer.max_steps=2", "trainer.save_every=1", "trainer.validate_every=0"]
    config = small_config(small_samples, *overrides)
    applied, count = threading.Event(), itertools.count(1)
    apply, write = Stepper.apply, state.write

    def applying(self: Stepper, outcome: Outcome) -> None:
        if next(count) == 2:
            applied.set()
        apply(self, outcome)

    def writing(*arguments: Any) -> None:
        assert applied.wait(60)
        write(*arguments)

    monkeypatch.setattr(Stepper, "apply", applying)
    monkeypatch.setattr(state, "write", writing)
    with LiveMemory() as memory:
        trainer = trainer_of(config, tmp_path)
        memory.add(trainer.denoiser.parameters())
        trainer.train()
    estimate = estimate_training(config, "cpu", FP32)
    counted_gb = memory.peak / 1e9
    assert estimate.total_gb - estimate.other_gb == pytest.approx(counted_gb, rel=0.08)
    assert estimate.state_gb == pytest.approx(16e-9 * trainer.num_parameters)
    assert estimate.checkpoint_gb == pytest.approx(12e-9 * trainer.num_parameters)
    assert estimate_training(config, "cuda", FP32).checkpoint_gb == 0


@pytest.mark.parametrize("precision", [BF16, FP32], ids=str)
@pytest.mark.parametrize(
    "sizes", ["num_layers=1 mlp_ratio=2.0", "num_layers=1 num_heads=8 mlp_ratio=6.0"]
)
def test_a_forward_pass_of_generation_holds_what_is_estimated(
    sizes: str, precision: Precision
) -> None:
    config = case(sizes, (57, 352, 640), 1, 1, "model.tokenizer.kind=toy")
    dtype = torch.bfloat16 if precision is BF16 else torch.float32
    expected_gb = count_forward_gb(config, precision, dtype)
    estimate = estimate_generation(config, "cpu", precision)
    assert estimate.activations_gb == pytest.approx(expected_gb, rel=0.08)


@pytest.mark.parametrize("device_type", ["cuda", "cpu"])
@pytest.mark.parametrize("clip", [(121, 704, 1280), (121, 352, 640), (57, 256, 320)], ids=str)
def test_decoding_holds_what_is_estimated(clip: tuple[int, int, int], device_type: str) -> None:
    # a tiny network, so that decoding needs most
    config = case("num_layers=1 num_heads=1", clip, 1, 1, "generate.guidance=0")
    dtype = torch.bfloat16 if device_type == "cuda" else torch.float32
    estimate = estimate_generation(config, device_type, BF16)
    # weights that are no real ones cannot change their layout
    ways = EAGER - {Way.channels_last} if device_type == "cuda" else ()
    expected_gb = count_decoding_gb(config, dtype, ways)
    assert estimate.activations_gb == pytest.approx(expected_gb, rel=0.12)


def test_the_clip_of_the_guide_has_56320_tokens() -> None:
    assert token_count(guide("7b")) == 56320


def test_smaller_moments_and_offloading_count() -> None:
    full = estimate_training(guide("7b", "parallel.recompute=full"), "cuda", BF16)
    for bits, share in (("bf16", 1 / 2), ("int8", 65 / 256)):
        config = guide("7b", "parallel.recompute=full", f"optim.state={bits}")
        smaller = estimate_training(config, "cuda", BF16)
        assert smaller.optimizer_gb == pytest.approx(share * full.optimizer_gb)
        assert smaller.activations_gb == full.activations_gb
    moved = guide("7b", "parallel.offload_activations=true")
    assert estimate_training(moved, "cuda", BF16).activations_gb < full.activations_gb + 5
    assert estimate_training(moved, "cpu", BF16) == estimate_training(guide("7b"), "cpu", BF16)


# GB allocated at the peak by each of two H200s: 7b, the guide's clip, parallel.recompute=full
MEASURED = {
    "dp_shard=2 trainer.global_batch_size=2": 97.3,
    "tp=2": 79.0,
    "cp=2": 75.0,
}


@pytest.mark.parametrize("layout", MEASURED)
def test_a_rank_of_two_holds_what_was_measured(layout: str) -> None:
    full = ("parallel.recompute=full", "trainer.preview_every=0")
    config = guide("7b", *full, *f"parallel.{layout}".split())
    share = share_of(config, degrees_of(config.parallel, 2), BF16)
    estimate = estimate_training(config, "cuda", BF16, share)
    assert estimate.total_gb - estimate.other_gb == pytest.approx(MEASURED[layout], rel=0.06)


def test_a_preview_counts_where_it_needs_more_than_a_step() -> None:
    full = ("parallel.recompute=full", "model.tokenizer.path=folder")
    for sizes, more_gb in (((), 0), (("model.num_layers=1", "model.num_heads=1"), 25)):
        with_previews = guide("7b", *full, *sizes)
        without = guide("7b", *full, *sizes, "trainer.preview_every=0")
        difference = [estimate_training(c, "cpu", BF16).total_gb for c in (with_previews, without)]
        assert difference[0] - difference[1] >= more_gb
        assert (difference[0] > difference[1]) == (more_gb > 0)


def test_the_breakdown_is_one_line() -> None:
    assert str(Memory(28.9, 28.9, 57.9, 30.1, 1.6)) == (
        "147 GB (weights 29, gradients 29, optimizer 58, activations 30, other 1.6)"
    )
    assert str(Memory(29, 29, 58, 30, 0.3, 87)) == (
        "233 GB (weights 29, gradients 29, optimizer 58, activations 30, other 0.3, checkpoint 87)"
    )
    assert str(Memory(14.5, 0, 0, 0.034, 0)) == "15 GB (weights 14, activations 0.034)"
