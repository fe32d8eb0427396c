"""Runs with adapters: what a checkpoint holds, how they go on, and what follows from them."""

import json
import logging
import shutil
from pathlib import Path

import live_memory
import pytest
import torch
from small_runs import (
    assert_same_tensors,
    export,
    generate,
    load_folder,
    rows_of,
    small_config,
    state_of,
    train,
    trainer_of,
)
from torch._subclasses.fake_tensor import unset_fake_temporarily

from cosmos_hydra import files, runs
from cosmos_hydra.config import Config, Precision
from cosmos_hydra.engines.torch.checkpoint import open_checkpoint
from cosmos_hydra.engines.torch.memory import estimate_training
from cosmos_hydra.errors import ConfigError, StageError
from cosmos_hydra.models.lora import add_adapters, initial_adapter, named_adapters, named_weights
from cosmos_hydra.models.transformer import Denoiser, build_transformer
from cosmos_hydra.reading import SEAL, sealed
from cosmos_hydra.weights.base import base_of
from cosmos_hydra.weights.locate import locate
from cosmos_hydra.weights.trained import adapters_in

LORA = ("peft.kind=lora", "peft.rank=4", "peft.alpha=8", "optim.lr=0.01")


@pytest.fixture(scope="module")
def base(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of 2 steps, and in `exported` its weights; do not write into it."""
    run = tmp_path_factory.mktemp("base")
    train(small_config(small_samples, "trainer.max_steps=2", "optim.lr=0.02"), run)
    export(runs.step_folder(run, 2), run / "exported")
    return run


@pytest.fixture(scope="module")
def tuned(small_samples: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of 4 steps with adapters on the base; do not write into it."""
    run = tmp_path_factory.mktemp("tuned")
    train(small_config(small_samples, *LORA, f"resume.path={base}"), run)
    return run


def merged_by_hand(tuned: Path, base: Path) -> dict[str, torch.Tensor]:
    """Return the base's weights with the adapters added, by the formula."""
    found, adapters = state_of(base, 2), state_of(tuned, 4)
    weights = {
        name.removeprefix("weight."): tensor
        for name, tensor in found.items()
        if name.startswith("weight.")
    }
    for name in weights:
        down = adapters.get(f"weight.{name.removesuffix('.weight')}.lora_A.weight")
        if down is not None:
            up = adapters[f"weight.{name.removesuffix('.weight')}.lora_B.weight"]
            weights[name] = weights[name] + 8 / 4 * (up @ down)
    return weights


def test_a_checkpoint_holds_adapters_alone_and_what_they_belong_to(tuned: Path, base: Path) -> None:
    folder = runs.step_folder(tuned, 4)
    state = state_of(tuned, 4)
    kinds = ("weight", "exp_avg", "exp_avg_sq", "step")
    assert len(state) == len(kinds) * 40
    assert all(name.split(".")[-2] in ("lora_A", "lora_B") for name in state)
    assert "weight.transformer_blocks.0.ff.net.2.lora_A.weight" in state
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["base"] == {
        "path": str(runs.step_folder(base, 2)),
        "sha256": locate(str(base), "checkpoint").digest,
        "base": {"seed": 0},
    }
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(
        manifest["files"]
    )
    for name, digest in manifest["files"].items():
        assert files.sha256_of(folder / name) == digest


def test_the_base_stays_bitwise_and_every_adapter_moves(
    small_samples: Path, base: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(small_config(small_samples, *LORA, f"resume.path={base}"), tmp_path)
    given = {
        f"weight.{name}": weight.detach() for name, weight in named_weights(trainer.transformer)
    }
    wanted = {name: weight for name, weight in state_of(base, 2).items() if name in given}
    before = {name: weight.clone() for name, weight in given.items()}
    assert_same_tensors(before, wanted)
    first = {
        name: initial_adapter(name, parameter.shape, 0)
        for name, parameter in named_adapters(trainer.transformer)
    }
    assert_same_tensors({n: p.detach() for n, p in named_adapters(trainer.transformer)}, first)
    trainer.train()
    assert_same_tensors(given, before)
    moved = [n for n, p in named_adapters(trainer.transformer) if not torch.equal(p, first[n])]
    assert len(moved) == 40


def test_two_and_two_steps_equal_four(
    small_samples: Path, base: Path, tuned: Path, tmp_path: Path
) -> None:
    given = (*LORA, f"resume.path={base}")
    train(small_config(small_samples, *given, "trainer.max_steps=2"), tmp_path)
    train(small_config(small_samples, *given), tmp_path)
    assert_same_tensors(state_of(tmp_path, 4), state_of(tuned, 4))
    assert rows_of(tmp_path) == rows_of(tuned)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        ours, theirs = (runs.step_folder(run, 4) / "adapter" / name for run in (tmp_path, tuned))
        assert ours.read_bytes() == theirs.read_bytes()


def test_random_weights_come_back_from_their_seed_with_a_warning(
    small_samples: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = small_config(small_samples, *LORA, "trainer.max_steps=1", "seed=3")
    trainer = train(config, tmp_path)
    assert open_checkpoint(runs.step_folder(tmp_path, 1)).manifest["base"] == {"seed": 3}
    assert (
        caplog.messages.count(
            "peft=lora on random weights learns nothing: the output projection is zero and "
            "stays so; set resume.path or model.weights.path"
        )
        == 1
    )
    assert any(
        "2.4 M parameters, 0.05 M of them trained, on cpu in fp32" in m for m in caplog.messages
    )
    again = trainer_of(config, tmp_path)
    assert again.step == 1
    assert_same_tensors(trainer.transformer.state_dict(), again.transformer.state_dict())


def test_peft_and_diffusers_load_the_adapter_and_compute_the_same(tuned: Path, base: Path) -> None:
    from diffusers import CosmosTransformer3DModel
    from peft import PeftModel

    folder = runs.step_folder(tuned, 4) / "adapter"
    torch.manual_seed(0)
    inputs = {
        # with the padding mask, which diffusers would add by torchvision
        "hidden_states": torch.randn(1, 17, 2, 6, 8),
        "timestep": torch.ones(1),
        "encoder_hidden_states": torch.randn(1, 16, 1024),
        "fps": 24,
        "return_dict": False,
    }

    def loaded() -> CosmosTransformer3DModel:
        model = CosmosTransformer3DModel.from_pretrained(base / "exported").eval()
        model.register_to_config(concat_padding_mask=False)
        return model

    plain, by_diffusers = loaded(), loaded()
    by_peft = PeftModel.from_pretrained(loaded(), folder).eval()
    by_diffusers.load_lora_adapter(
        folder, prefix="base_model.model", weight_name="adapter_model.safetensors"
    )
    by_hand = loaded()
    by_hand.load_state_dict(merged_by_hand(tuned, base))
    with torch.no_grad():
        outputs = {
            name: model(**inputs)[0]
            for name, model in (("plain", plain), ("peft", by_peft), ("diffusers", by_diffusers))
        }
        expected = by_hand(**inputs)[0]
    assert torch.allclose(outputs["peft"], expected, atol=1e-5)
    assert torch.allclose(outputs["diffusers"], expected, atol=1e-5)
    assert not torch.allclose(outputs["plain"], expected, atol=1e-2)


@pytest.mark.parametrize("key", ["resume.path", "model.weights.path"])
def test_a_run_starts_from_merged_weights(
    small_samples: Path, tuned: Path, base: Path, tmp_path: Path, key: str
) -> None:
    trainer = trainer_of(small_config(small_samples, f"{key}={tuned}"), tmp_path)
    assert_same_tensors(trainer.transformer.state_dict(), merged_by_hand(tuned, base))
    # and again with adapters of its own, whose checkpoint names the first run's
    second = small_config(small_samples, *LORA, f"{key}={tuned}", "trainer.max_steps=1")
    train(second, tmp_path / "second")
    found = open_checkpoint(runs.step_folder(tmp_path / "second", 1))
    assert found.manifest["base"]["sha256"] == locate(str(tuned), "checkpoint").digest
    again = trainer_of(second, tmp_path / "second")
    weights = {name: weight.detach() for name, weight in named_weights(again.transformer)}
    assert_same_tensors(weights, merged_by_hand(tuned, base))


def test_videos_are_made_with_the_merged_weights(tuned: Path, base: Path, tmp_path: Path) -> None:
    videos = {
        name: generate(run, tmp_path / name, "generate.prompt=a robot")[0].read_bytes()
        for name, run in (("base", base), ("tuned", tuned))
    }
    assert videos["base"] != videos["tuned"]


def test_a_base_that_moved_is_found_where_it_is_said_to_be(
    small_samples: Path, base: Path, tmp_path: Path
) -> None:
    shutil.copytree(base / "exported", tmp_path / "here")
    given = (*LORA, "trainer.max_steps=1", "trainer.validate_every=0")
    run, there = tmp_path / "run", tmp_path / "there"
    train(small_config(small_samples, *given, f"model.weights.path={tmp_path / 'here'}"), run)
    (tmp_path / "here").rename(there)
    folder = runs.step_folder(run, 1)
    digest = locate(str(there), "checkpoint").digest[:12]
    gone = (
        f"checkpoint {folder} holds adapters of the weights {tmp_path / 'here'} (sha256 {digest}), "
        f"which are gone; put them back, or set model.weights.path to where they lie now"
    )
    for action in (
        lambda: trainer_of(small_config(small_samples, *given), run),
        lambda: generate(run, tmp_path / "videos", "generate.prompt=a robot"),
    ):
        with pytest.raises(StageError) as refusal:
            action()
        assert str(refusal.value) == gone
    moved = f"model.weights.path={there}"
    assert trainer_of(small_config(small_samples, *given, moved), run).step == 1
    assert generate(run, tmp_path / "videos", "generate.prompt=a robot", moved)


def test_a_base_with_other_weights_is_refused(
    small_samples: Path, base: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    shutil.copytree(base / "exported", here)
    given = (*LORA, "trainer.max_steps=1", "trainer.validate_every=0", f"resume.path={here}")
    train(small_config(small_samples, *given), tmp_path / "run")
    before = locate(str(here), "checkpoint").digest
    weights = here / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    after = locate(str(here), "checkpoint").digest
    with pytest.raises(StageError) as refusal:
        trainer_of(small_config(small_samples, *given), tmp_path / "run")
    assert str(refusal.value) == (
        f"checkpoint {runs.step_folder(tmp_path / 'run', 1)} holds adapters of the weights {here} "
        f"(sha256 {before[:12]}), which have changed (sha256 {after[:12]}); put them back, or set "
        f"model.weights.path to where they lie now"
    )


def test_a_manifest_that_names_no_base_is_refused(tuned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run/checkpoints/step_000004"
    shutil.copytree(runs.step_folder(tuned, 4), folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest[SEAL]
    for base in (None, {}, {"path": 3, "sha256": "0"}, {"seed": "x"}):
        (folder / "manifest.json").write_bytes(sealed({**manifest, "base": base}))
        with pytest.raises(
            StageError,
            match=r"is damaged: its manifest does not say what its adapters belong to$",
        ):
            base_of(open_checkpoint(folder))


def test_a_run_does_not_go_on_with_other_adapters_or_without(
    small_samples: Path, tuned: Path, base: Path
) -> None:
    given = (*LORA, f"resume.path={base}")
    for override, difference in (
        ("peft.kind=none", "peft.kind: lora -> none"),
        ("peft.rank=8", "peft.rank: 4 -> 8"),
        ("peft.targets=[to_q]", r"peft.targets: \[.*\] -> \[\"to_q\"\]"),
    ):
        with pytest.raises(ConfigError, match=f"a run with another config: {difference};"):
            trainer_of(small_config(small_samples, *given, override), tuned)


def test_a_damaged_adapter_is_named(tuned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run/checkpoints/step_000004"
    shutil.copytree(runs.step_folder(tuned, 4), folder)
    (folder / "adapter/adapter_config.json").write_text("{}")
    with pytest.raises(StageError, match=r"is damaged: adapter/adapter_config\.json has changed$"):
        open_checkpoint(folder)


def test_the_files_are_those_of_the_state(tuned: Path, base: Path) -> None:
    folder = runs.step_folder(tuned, 4)
    adapters, state = adapters_in(folder / "state"), state_of(tuned, 4)
    assert_same_tensors(
        {f"weight.{name}": tensor for name, tensor in adapters.items()},
        {name: tensor for name, tensor in state.items() if name.startswith("weight.")},
    )
    transformer = build_transformer(small_config(Path()).model)
    load_folder(transformer, base / "exported")
    saved = {name.removeprefix("weight."): t for name, t in state_of(base, 2).items()}
    assert all(torch.equal(t, saved[name]) for name, t in transformer.state_dict().items())


def test_the_memory_of_a_step_is_that_of_what_is_trained(
    small_samples: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(small_samples, *LORA, f"resume.path={base}")
    trainer = trainer_of(config, tmp_path)
    estimate = estimate_training(config, "cpu", Precision.fp32)
    assert estimate.weights_gb == pytest.approx(4e-9 * trainer.num_parameters)
    assert estimate.gradients_gb == pytest.approx(4e-9 * trainer.num_trained)
    assert estimate.optimizer_gb == pytest.approx(8e-9 * trainer.num_trained)
    assert estimate.checkpoint_gb == pytest.approx(12e-9 * trainer.num_trained)
    build = live_memory.build

    def with_adapters(config: Config) -> Denoiser:
        # peft moves its layers, which fake tensors do not allow
        with unset_fake_temporarily(), torch.device("meta"):
            denoiser = build(config)
            add_adapters(denoiser.transformer, config.peft)
        return denoiser.to_empty(device="cpu")

    monkeypatch.setattr(live_memory, "build", with_adapters)
    larger = small_config(
        small_samples, *LORA, "data.frames=33", "data.height=256", "data.width=320"
    )
    for precision in (Precision.fp32, Precision.bf16):
        counted_gb = live_memory.count_training_gb(larger, precision)
        estimate = estimate_training(larger, "cpu", precision)
        estimated_gb = estimate.gradients_gb + estimate.activations_gb
        # frozen layers keep less than is counted for trained ones
        assert counted_gb < estimated_gb < 1.5 * counted_gb
