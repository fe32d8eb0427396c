"""One run: what an update computes, however it is cut into pieces, and what the run records."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_runs import rows_of, small_config, state_of, train, trainer_of

from cosmos_hydra import runs
from cosmos_hydra.config import OptimConfig, Schedule
from cosmos_hydra.data.clips import TRAIN
from cosmos_hydra.data.loader import Loader
from cosmos_hydra.engines.torch.optimizer import learning_rate

ONE_STEP = ("trainer.max_steps=1", "trainer.validate_every=0", "optim.grad_clip=1e9")


def first_moments(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Return the running mean of the gradients by parameter name."""
    state = state_of(run, step)
    return {name[8:]: state[name] for name in state if name.startswith("exp_avg.")}


def test_accumulated_micro_batches_give_the_update_of_one_batch(
    small_samples: Path, tmp_path: Path
) -> None:
    # a large epsilon, since Adam's own would magnify rounding of gradients near zero
    overrides = ["trainer.max_steps=3", "trainer.validate_every=0", "optim.eps=1e-3"]
    states = {}
    for micro in (1, 3, 4):
        sizes = ["trainer.global_batch_size=4", f"trainer.micro_batch_size={micro}"]
        config = small_config(small_samples, *overrides, *sizes)
        train(config, tmp_path / str(micro))
        states[micro] = state_of(tmp_path / str(micro), 3)
    for micro in (1, 3):
        for name, tensor in states[4].items():
            torch.testing.assert_close(states[micro][name], tensor, rtol=0, atol=1e-6, msg=name)
    losses = {micro: [row["loss"] for row in rows_of(tmp_path / str(micro))] for micro in states}
    assert losses[1] == pytest.approx(losses[4], abs=1e-6)
    assert losses[3] == pytest.approx(losses[4], abs=1e-6)


def test_recomputed_blocks_give_the_same_gradients(small_samples: Path, tmp_path: Path) -> None:
    calls = {}
    for recompute in ("none", "full"):
        config = small_config(
            small_samples,
            f"parallel.recompute={recompute}",
            "trainer.max_steps=2",
            "trainer.validate_every=0",
        )
        trainer = trainer_of(config, tmp_path / recompute)
        seen: list[int] = []
        trainer.transformer.transformer_blocks[0].attn1.to_q.register_forward_hook(
            lambda *_, seen=seen: seen.append(1)
        )
        trainer.train()
        calls[recompute] = len(seen)
    assert calls == {"none": 2, "full": 4}
    kept, recomputed = (first_moments(tmp_path / name, 2) for name in ("none", "full"))
    for name, tensor in kept.items():
        torch.testing.assert_close(recomputed[name], tensor, rtol=0, atol=1e-7, msg=name)


def test_every_trainable_parameter_has_a_gradient_after_two_steps(
    small_samples: Path, tmp_path: Path
) -> None:
    quick = ("trainer.max_steps=2", "trainer.validate_every=0", "model.objective.text_dropout=0")
    trainer = train(small_config(small_samples, *quick), tmp_path)
    objective, ids = trainer.config.model.objective, trainer.store.splits[TRAIN]
    for batch in Loader(trainer.store, ids, objective, 0, 2, 2).load(step=2):
        trainer.stepper._losses(batch).sum().backward()
    without = [
        name
        for name, parameter in trainer.transformer.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    ]
    assert without == []
    assert len(first_moments(tmp_path, 2)) == len(list(trainer.transformer.parameters()))


def test_bfloat16_trains_float32_weights_on_a_cpu(small_samples: Path, tmp_path: Path) -> None:
    dtypes = []
    config = small_config(small_samples, "parallel.precision=bf16")
    trainer = trainer_of(config, tmp_path)
    trainer.transformer.transformer_blocks[0].attn1.to_q.register_forward_hook(
        lambda _module, _input, output: dtypes.append(output.dtype)
    )
    trainer.train()
    assert set(dtypes) == {torch.bfloat16}
    assert {tensor.dtype for tensor in state_of(tmp_path, 4).values()} == {torch.float32}
    manifest = json.loads((runs.step_folder(tmp_path, 4) / "manifest.json").read_text())
    assert manifest["effective"] == {"device": "cpu", "precision": "bf16", "attention": "flash"}
    exact = train(small_config(small_samples), tmp_path / "exact")
    assert trainer.last_loss == pytest.approx(exact.last_loss, rel=0.02)
    assert trainer.last_loss != exact.last_loss


def test_compile_applies_to_every_block(small_samples: Path, tmp_path: Path) -> None:
    for value in (True, False):
        config = small_config(small_samples, f"parallel.compile={value}")
        blocks = trainer_of(config, tmp_path).transformer.transformer_blocks
        assert [block._compiled_call_impl is not None for block in blocks] == [value] * 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_compute_the_same(small_samples: Path, tmp_path: Path) -> None:
    moments = {}
    for value in (True, False):
        config = small_config(
            small_samples,
            f"parallel.compile={value}",
            "model.num_layers=1",
            "trainer.max_steps=3",
            "trainer.validate_every=0",
            "optim.eps=1e-3",
        )
        train(config, tmp_path / str(value))
        moments[value] = first_moments(tmp_path / str(value), 3)
    assert moments[True].keys() == moments[False].keys()
    for name, tensor in moments[False].items():
        torch.testing.assert_close(moments[True][name], tensor, rtol=0, atol=1e-5, msg=name)


def test_the_norm_in_the_metrics_is_taken_before_clipping(
    small_samples: Path, tmp_path: Path
) -> None:
    free = train(small_config(small_samples, *ONE_STEP), tmp_path / "free")
    clipped = train(small_config(small_samples, *ONE_STEP[:2], "optim.grad_clip=0.1"), tmp_path)
    norm = rows_of(free.run)[0]["grad_norm"]
    assert norm > 0.1
    assert rows_of(clipped.run)[0]["grad_norm"] == norm
    moments = first_moments(tmp_path, 1)
    total = torch.stack([(tensor / 0.1).square().sum() for tensor in moments.values()]).sum()
    assert total.sqrt().item() == pytest.approx(0.1, rel=1e-3)


def test_clipping_can_be_switched_off(small_samples: Path, tmp_path: Path) -> None:
    off = train(small_config(small_samples, *ONE_STEP[:2], "optim.grad_clip=null"), tmp_path)
    large = train(small_config(small_samples, *ONE_STEP), tmp_path / "large")
    assert rows_of(off.run) == rows_of(large.run)


def test_training_rows_hold_every_step_with_its_rate(small_samples: Path, tmp_path: Path) -> None:
    overrides = ["optim.schedule=cosine", "optim.warmup_steps=2", "optim.lr=0.01"]
    train(small_config(small_samples, *overrides), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    training = [row for row in rows if "loss" in row]
    keys = ["step", "loss", "lr", "grad_norm", "step_s", "data_wait_s", "tokens_per_s", "mem_gb"]
    assert all(list(row) == keys for row in training)
    assert [row["step"] for row in training] == [1, 2, 3, 4]
    optim = OptimConfig(lr=0.01, schedule=Schedule.cosine, warmup_steps=2)
    expected = [learning_rate(optim, step, 4) for step in range(4)]
    assert [row["lr"] for row in training] == pytest.approx(expected)
    # latents of 2x6x8 cells, patches of 1x2x2, two samples
    for row in training:
        assert row["tokens_per_s"] * row["step_s"] == pytest.approx(2 * 2 * 3 * 4)
        assert 0 <= row["data_wait_s"] <= row["step_s"]
