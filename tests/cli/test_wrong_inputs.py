"""Samples, weights, names that do not fit: one line each with the numbers, and nothing is made."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import SMALL, Command
from small_runs import SAMPLES, small_config, train
from tiny_folders import write_tiny_cosmos

from cosmos_hydra import runs

AGAIN = "preprocess again into another data.path"
OTHERS = {
    "model.tokenizer.kind=cosmos": (
        f"was made with the toy tokenizer, not model.tokenizer.kind=cosmos; {AGAIN}"
    ),
    "model.text_encoder.kind=t5": (
        f"was made with the hash text_encoder, not model.text_encoder.kind=t5; {AGAIN}"
    ),
    "model.latent_channels=8": f"holds samples of model.latent_channels=16, not 8; {AGAIN}",
    "model.text_tokens=32": f"holds samples of model.text_tokens=16, not 32; {AGAIN}",
    "model.text_dim=512": f"holds samples of model.text_dim=1024, not 512; {AGAIN}",
    "data.width=96": (
        "holds clips of 9 frames at 48x64, not data.frames=9 data.height=48 data.width=96; "
        "set these to the samples' numbers"
    ),
}


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def source(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with a checkpoint at step 1; do not write into it."""
    run = tmp_path_factory.mktemp("source") / "one"
    train(small_config(small_samples, "trainer.max_steps=1", "trainer.validate_every=0"), run)
    return run


@pytest.mark.parametrize("override", OTHERS)
def test_samples_made_for_another_model_are_refused(
    command: Command, small_samples: Path, tmp_path: Path, override: str
) -> None:
    path = small_samples / SAMPLES
    typed = ("stage=post_train", *SMALL, f"data.path={path}", override)
    refused = command(*typed, cwd=tmp_path)
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr == f"cosmos-hydra: data.path={path} {OTHERS[override]}\n"
    assert files_below(tmp_path) == []


def test_everything_that_does_not_fit_comes_out_at_once(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    path = small_samples / SAMPLES
    refused = command("stage=post_train", *SMALL, f"data.path={path}", *OTHERS, cwd=tmp_path)
    assert refused.code == 2
    lines = [f"cosmos-hydra: data.path={path} {line}" for line in OTHERS.values()]
    assert refused.stderr.splitlines() == lines
    assert files_below(tmp_path) == []


# below a run: the run, a step, the diffusers folder of a step
BELOW = ("", "checkpoints/step_000001", "checkpoints/step_000001/transformer")
CHANGES = ("model.num_layers=3", "model.num_heads=2", "model.rope_scale=[2,1,1]")
NUMBERS = (
    "num_attention_heads 3 (model=tiny has 2), num_layers 2 (model=tiny has 3), "
    "rope_scale [1.0, 1.0, 1.0] (model=tiny has [2.0, 1.0, 1.0]); "
    "choose the model= it belongs to, or other weights"
)


@pytest.mark.parametrize(
    ("key", "below"),
    [("model.weights.path", BELOW[0]), ("resume.path", BELOW[1]), ("resume.path", BELOW[2])],
)
def test_weights_of_another_architecture_are_refused_before_training(
    command: Command, small_samples: Path, source: Path, tmp_path: Path, key: str, below: str
) -> None:
    typed = ("stage=post_train", *SMALL, f"data.path={small_samples / SAMPLES}", *CHANGES)
    refused = command(*typed, f"{key}={source / below}", cwd=tmp_path)
    folder = source / below if below.endswith("transformer") else runs.step_folder(source, 1)
    assert (refused.code, refused.stderr) == (
        2,
        f"cosmos-hydra: {key}={folder} is another architecture: {NUMBERS}\n",
    )
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("below", BELOW)
def test_weights_of_another_architecture_are_refused_before_generating(
    command: Command, source: Path, tmp_path: Path, below: str
) -> None:
    before = files_below(source)
    typed = ("stage=generate", f"checkpoint={source / below}", "generate.prompt=a robot", *CHANGES)
    refused = command(*typed, "model.tokenizer.kind=toy", cwd=tmp_path)
    is_foreign = below.endswith("transformer")
    lines = (
        [f"checkpoint={source / below} is another architecture: {NUMBERS}"]
        if is_foreign
        else [
            "model.num_heads=2 but the checkpoint has 3; leave it out",
            "model.num_layers=3 but the checkpoint has 2; leave it out",
            (
                "model.rope_scale=[2.0, 1.0, 1.0] but the checkpoint has [1.0, 1.0, 1.0]; "
                "leave it out"
            ),
        ]
    )
    shown = [line for line in refused.stderr.splitlines() if "text_tokens" not in line]
    assert refused.code == 2
    assert shown == [f"cosmos-hydra: {line}" for line in lines]
    assert files_below(tmp_path) == []
    assert files_below(source) == before


@pytest.mark.parametrize(
    "name", ["../elsewhere", "a/../../elsewhere", "{tmp_path}/elsewhere", ".."]
)
def test_a_name_that_leaves_the_runs_is_refused(
    command: Command, tmp_path: Path, name: str
) -> None:
    (tmp_path / "work").mkdir()
    name = name.format(tmp_path=tmp_path)
    refused = command("stage=preprocess", *SMALL, f"name={name}", cwd=tmp_path / "work")
    assert (refused.code, refused.stderr) == (
        2,
        f"cosmos-hydra: name={name} leaves paths.runs; choose a plain name, or set paths.runs\n",
    )
    assert files_below(tmp_path) == ["work"]


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:-1"])
def test_a_device_of_another_kind_is_refused(command: Command, tmp_path: Path, device: str) -> None:
    refused = command("stage=preprocess", f"engine.device='{device}'", cwd=tmp_path)
    assert (refused.code, refused.stderr) == (
        2,
        f"cosmos-hydra: engine.device={device} is no device; use auto, cpu or cuda\n",
    )
    assert files_below(tmp_path) == []


def test_a_gpu_beyond_the_last_is_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    refused = command("stage=post_train", "engine.device='cuda:2'", cwd=tmp_path)
    assert (refused.code, refused.stderr) == (
        2,
        (
            "cosmos-hydra: engine.device=cuda:2 but torch sees 2 CUDA devices, counted from "
            "cuda:0; use cuda or auto\n"
        ),
    )
    assert files_below(tmp_path) == []


@pytest.fixture(scope="module")
def cosmos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two tiny tokenizers, a and b, whose statistics differ."""
    folder = tmp_path_factory.mktemp("cosmos")
    for number, name in enumerate("ab"):
        generator = torch.Generator().manual_seed(number)
        write_tiny_cosmos(folder / name, torch.rand(1, 3, 9, 48, 64, generator=generator))
    return folder


def test_another_tokenizer_than_that_of_the_samples_is_refused_where_it_would_decode(
    command: Command, small_samples: Path, cosmos_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_samples / "samples/synthetic-videos", tmp_path / "videos")
    typed = (*SMALL, "data=folder", "data.source=videos", "model.tokenizer.kind=cosmos", "name=one")
    typed += ("data.chunks_per_video=1", "trainer.max_steps=1", "trainer.validate_every=0")
    typed += (f"model.tokenizer.path={cosmos_folder / 'a'}",)
    stages = "pipeline.stages=[preprocess,post_train]"
    assert command("stage=pipeline", stages, *typed, cwd=tmp_path).code == 0
    generate = ("stage=generate", "checkpoint=runs/one", "generate.steps=1", "generate.out=out")
    refused = command(*generate, f"model.tokenizer.path={cosmos_folder / 'b'}", cwd=tmp_path)
    assert (refused.code, refused.stderr) == (
        1,
        (
            f"cosmos-hydra: model.tokenizer.path={cosmos_folder / 'b'} is not the tokenizer of the "
            "training samples; set it to the one they were made with\n"
        ),
    )
    assert not (tmp_path / "out").exists()
    # the same tokenizer in another place is the same
    shutil.copytree(cosmos_folder / "a", tmp_path / "moved")
    done = command(*generate, "model.tokenizer.path=moved", "generate.max_captions=1", cwd=tmp_path)
    assert (done.code, done.stderr) == (0, "")
    assert len(list((tmp_path / "out").glob("*_??????.mp4"))) == 1
