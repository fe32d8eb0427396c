"""A video's sidecar: its command, run again elsewhere, makes the same bytes."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from conftest import SMALL, Command
from small_runs import FPS, SAMPLES, export, small_config, train

import cosmos_hydra
from cosmos_hydra import runs
from cosmos_hydra.data.video import probe
from cosmos_hydra.weights.locate import locate

FOREIGN = (
    "model.num_layers=2",
    "model.text_tokens=16",
    "model.tokenizer.kind=cosmos",
    "data.frames=9",
    "data.height=48",
    "data.width=64",
)


@pytest.fixture(scope="module")
def folder(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run in runs/one; commands in it name the run by a relative path."""
    folder = tmp_path_factory.mktemp("trained")
    train(small_config(small_samples, "optim.lr=0.02"), folder / "runs" / "one")
    return folder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a random AutoencoderKLCosmos of a few thousand parameters."""
    from diffusers import AutoencoderKLCosmos

    path = tmp_path_factory.mktemp("autoencoder")
    torch.manual_seed(0)
    AutoencoderKLCosmos(
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        num_layers=1,
        attention_resolutions=(),
        resolution=64,
    ).save_pretrained(path)
    return path


def run_again(command: Command, sidecar: Path, out: Path, cwd: Path) -> Path:
    """Run a sidecar's command into another folder and return the video."""
    program, *typed = shlex.split(json.loads(sidecar.read_text())["command"])
    assert program == "cosmos-hydra"
    kept = [item for item in typed if not item.startswith("generate.out=")]
    assert len(kept) == len(typed) - 1
    outcome = command(*kept, f"generate.out={out}", cwd=cwd)
    assert (outcome.code, outcome.stderr) == (0, "")
    (video,) = out.glob("*_??????.mp4")
    return video


def test_the_command_makes_the_same_bytes_for_any_prompt(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    prompts = ['it\'s (red), 50% "odd", ${seed} = \\', "'quoted'", "null"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    typed = ["stage=generate", "checkpoint=runs/one", "generate.steps=2", "generate.guidance=3"]
    typed += ["generate.negative_prompt=dark, blurry", f"generate.out={tmp_path / 'first'}"]
    command(*typed, f"generate.prompt_file={tmp_path / 'prompts.txt'}", cwd=folder)
    found = sorted((tmp_path / "first").glob("*_??????.json"))
    assert len(found) == len(prompts)
    for number, sidecar in enumerate(found):
        video = run_again(command, sidecar, tmp_path / f"again-{number}", folder)
        first = json.loads(sidecar.read_text())
        second = json.loads(video.with_suffix(".json").read_text())
        assert {**first, "command": None} == {**second, "command": None}
        assert video.name == sidecar.with_suffix(".mp4").name
        assert video.read_bytes() == sidecar.with_suffix(".mp4").read_bytes()


def test_the_sidecar_holds_everything_that_decides_the_content(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    typed = ["stage=generate", "checkpoint=runs/one", "generate.prompt=a robot"]
    typed += ["generate.steps=2", "generate.guidance=0.5", f"generate.out={tmp_path}"]
    command(*typed, cwd=folder)
    (sidecar,) = tmp_path.glob("*_??????.json")
    facts = json.loads(sidecar.read_text())
    tokenizer = facts.pop("tokenizer")
    assert tokenizer["kind"] == "toy"
    assert len(tokenizer["sha256"]) == 64
    assert facts.pop("command").startswith(
        "cosmos-hydra stage=generate checkpoint=runs/one/checkpoints/step_000004 "
    )
    assert facts == {
        "prompt": "a robot",
        "negative_prompt": None,
        "seed": 1,
        "steps": 2,
        "guidance": 0.5,
        "sampler": "res_2ab",
        "frames": 9,
        "height": 48,
        "width": 64,
        "fps": FPS,
        "weights_sha256": locate(str(folder / "runs" / "one"), "checkpoint").digest,
        "device": "cpu",
        "precision": "fp32",
        "compiled": False,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cosmos_hydra": cosmos_hydra.__version__,
        "text_encoder": {"kind": "hash", "num_tokens": 16, "dim": 1024},
        # the run began with random weights
        "difference": None,
    }


def test_the_pipeline_reproduces_its_own_videos_too(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    typed = ["stage=pipeline", "pipeline.stages=[post_train,generate]", "name=one", *SMALL]
    typed += [f"data.path={small_samples / SAMPLES}", "trainer.validate_every=0"]
    assert command(*typed, "trainer.max_steps=1", cwd=tmp_path).code == 0
    (sidecar, *_) = sorted((tmp_path / "runs" / "one" / "videos").glob("*_??????.json"))
    video = run_again(command, sidecar, tmp_path / "again", tmp_path)
    assert video.read_bytes() == sidecar.with_suffix(".mp4").read_bytes()


def test_a_diffusers_folder_generates_with_its_tokenizer_and_reproduces(
    command: Command, folder: Path, autoencoder: Path, tmp_path: Path
) -> None:
    transformer = export(runs.step_folder(folder / "runs" / "one", 4), tmp_path / "exported")
    typed = ["stage=generate", f"checkpoint={transformer}", "generate.prompt=a robot"]
    typed += ["generate.steps=2", f"generate.out={tmp_path / 'first'}", *FOREIGN]
    outcome = command(*typed, f"model.tokenizer.path={autoencoder}", cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (0, "")
    (sidecar,) = (tmp_path / "first").glob("*_??????.json")
    facts = json.loads(sidecar.read_text())
    assert facts["fps"] == 24.0
    assert facts["tokenizer"]["kind"] == "cosmos"
    info = probe(sidecar.with_suffix(".mp4"))
    assert (info.num_frames, info.height, info.width, info.fps) == (9, 48, 64, 24.0)
    video = run_again(command, sidecar, tmp_path / "again", tmp_path)
    assert video.read_bytes() == sidecar.with_suffix(".mp4").read_bytes()


def test_a_diffusers_folder_without_a_tokenizer_or_prompt_or_of_another_size_is_one_line(
    command: Command, folder: Path, autoencoder: Path, tmp_path: Path
) -> None:
    transformer = export(runs.step_folder(folder / "runs" / "one", 4), tmp_path / "exported")
    typed = ["stage=generate", f"checkpoint={transformer}", f"generate.out={tmp_path / 'out'}"]
    complete = [*FOREIGN, f"model.tokenizer.path={autoencoder}", "generate.prompt=a robot"]
    for change, message in (
        (
            "model.tokenizer.kind=toy",
            (
                "model.tokenizer.kind=toy but there is no fitted tokenizer, it lies in a run; "
                "use a run or a step, or model.tokenizer.kind=cosmos with model.tokenizer.path"
            ),
        ),
        (
            "model.tokenizer.path=null",
            "model.tokenizer.path=null; set it to the folder of AutoencoderKLCosmos",
        ),
        (
            "generate.prompt=null",
            "generate.prompt=null and the weights name no captions; set a prompt",
        ),
        (
            "model.num_layers=3",
            (
                f"checkpoint={transformer} is another architecture: num_layers 2 "
                "(model=tiny has 3); choose the model= it belongs to, or other weights"
            ),
        ),
    ):
        key = change.partition("=")[0]
        kept = [item for item in complete if item.partition("=")[0] != key]
        refused = command(*typed, *kept, change, cwd=tmp_path)
        assert (refused.code, refused.stderr) == (2, f"cosmos-hydra: {message}\n")
