"""Folders that carry code or pickles beside what is read, and what the command line says."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, Command
from hostile_files import PICKLES, pickled
from places import PLACES, SMALL_MODEL, STEP, sound_folder

from cosmos_hydra.errors import ConfigError, StageError
from cosmos_hydra.tracking import metrics


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one of everything that is read; do not write into it."""
    return sound_folder(tmp_path_factory.getbasetemp())


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """Return where a payload would write; nothing may be there afterwards."""
    canary = tmp_path / "canary"
    yield canary
    assert not canary.exists()


def test_what_no_reader_opens_runs_nothing(sound: Path, tmp_path: Path, canary: Path) -> None:
    """Code and pickles beside sound files: names that other programs load by themselves."""
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    code = f"open({str(canary)!r}, 'w')"
    for folder in ("t5", "vae", "diffusers", "run", "samples/data", "dcp"):
        for name in ("modeling.py", "tokenization.py", "setup.py", "conftest.py", "__init__.py"):
            (tmp_path / folder / name).write_text(code)
        for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "common.pt", "x.jit"):
            PICKLES["torch zip"](tmp_path / folder / name, canary)
        for name in ("metrics.jsonl", "x.nemo", "optimizer.pt", "__0_0.distcp", "rng.pkl"):
            PICKLES["pickle"](tmp_path / folder / name, canary)
    asked = {"auto_map": {"AutoTokenizer": ["tokenization.T", None]}, "tokenizer_class": "T"}
    (tmp_path / "t5/tokenizer_config.json").write_text(json.dumps(asked))
    PICKLES["pickle"](tmp_path / "nemo/data/0.t5_text_mask.pth", canary)
    for place in PLACES.values():
        place.read(tmp_path)
    assert metrics.read(tmp_path / "run/metrics.jsonl") == []


@pytest.mark.parametrize("folder", ["t5", "vae"])
@pytest.mark.parametrize(
    ("asked", "content"),
    [
        ("auto_map in config.json", {"auto_map": {"AutoModel": "modeling.Model"}}),
        ("quantization_config in config.json", {"quantization_config": {"load_in_8bit": True}}),
        ("adapter_config.json", {}),
    ],
)
def test_a_folder_that_asks_for_code_or_other_weights_is_refused(
    folder: str, asked: str, content: dict[str, Any], sound: Path, tmp_path: Path
) -> None:
    shutil.copytree(sound / folder, tmp_path / folder)
    file = tmp_path / folder / asked.split(" in ")[-1]
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(before | content))
    (tmp_path / folder / "modeling.py").write_text("raise SystemExit")
    with pytest.raises(ConfigError) as refusal:
        PLACES[f"{folder} weights"].read(tmp_path)
    assert str(refusal.value).endswith(
        f"/{folder} asks for {asked}, which is never followed: it can run code or load other "
        f"weights; remove it if the weights do without"
    )


@pytest.mark.parametrize("folder", ["t5", "vae", "diffusers"])
def test_weights_are_never_taken_from_a_pickle(
    folder: str, sound: Path, tmp_path: Path, canary: Path
) -> None:
    shutil.copytree(sound / folder, tmp_path / folder)
    (weights,) = (tmp_path / folder).glob("*.safetensors")
    PICKLES["torch zip"](weights.with_suffix(".bin"), canary)
    PICKLES["torch zip"](weights.with_name("pytorch_model.bin"), canary)
    for name in ("model.pt", weights.name + ".index.json.bak", "other.safetensors"):
        weights.with_name(name).write_bytes(weights.read_bytes())
    weights.unlink()
    with pytest.raises(StageError, match=f"holds no {weights.name}; only safetensors are loaded$"):
        PLACES[f"{folder} weights".replace("diffusers ", "")].read(tmp_path)


TRAIN = ("stage=post_train", *SMALL)
# a file, what it becomes, a command, its exit code, and how its one line begins
COMMANDS = {
    "sample": (
        "latent .pth",
        "torch zip",
        (*TRAIN, "data.path=nemo/data"),
        1,
        "data.path=nemo/data sample 0 cannot be read (0.video_latent.pth is damaged); ",
    ),
    "manifest of samples": (
        "sample manifest",
        "pickle",
        (*TRAIN, "data.path=samples/data"),
        1,
        "samples/data/manifest.json is damaged (",
    ),
    "run": (
        "checkpoint manifest",
        "pickle",
        ("stage=generate", f"checkpoint={STEP}"),
        1,
        f"checkpoint {STEP} has no readable manifest.json (",
    ),
    "weights": (
        "weights",
        "torch legacy",
        (*TRAIN, "data.path=samples/data", "resume.path=diffusers", *SMALL_MODEL),
        1,
        "diffusers/diffusion_pytorch_model.safetensors cannot be read (",
    ),
    "distributed checkpoint": (
        "dcp metadata",
        "pickle of protocol 5",
        ("stage=generate", "checkpoint=dcp"),
        1,
        "dcp/.metadata refers to builtins.eval, which no checkpoint needs and which could run ",
    ),
    "text encoder": (
        "t5 config",
        "torch zip",
        ("stage=preprocess", *SMALL, "model.text_encoder.kind=t5", "model.text_encoder.path=t5"),
        1,
        "model.text_encoder.path=t5: config.json cannot be read (",
    ),
    "tokenizer": (
        "vae weights",
        "pickle",
        ("stage=preprocess", *SMALL, "model.tokenizer.kind=cosmos", "model.tokenizer.path=vae"),
        1,
        "model.tokenizer.path=vae: diffusion_pytorch_model.safetensors cannot be read (",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_line_says_so_in_one_line(
    name: str, command: Command, sound: Path, tmp_path: Path, canary: Path
) -> None:
    place, kind, typed, code, line = COMMANDS[name]
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    PICKLES[kind](PLACES[place].path(tmp_path), canary)
    outcome = command(*typed, cwd=tmp_path)
    assert outcome.stderr.startswith(f"cosmos-hydra: {line}")
    assert outcome.stderr.count("\n") == 1
    assert outcome.code == code


@pytest.mark.parametrize("name", ["model.pt", "model.nemo", "model.jit", "common.pt", "x.distcp"])
def test_a_pickled_checkpoint_is_not_even_opened(
    name: str, command: Command, tmp_path: Path, canary: Path
) -> None:
    pickled("os.system")(tmp_path / name, canary)
    outcome = command("stage=generate", f"checkpoint={name}", cwd=tmp_path)
    if name.endswith(".pt"):
        message = f"{name} cannot be read (File is not a zip file)"
    else:
        message = (
            f"checkpoint={name} is neither a run, a step of a run, nor weights of diffusers, "
            f"the original code or NeMo"
        )
    assert outcome.stderr == f"cosmos-hydra: {message}\n"
    assert outcome.code == 1 + (not name.endswith(".pt"))
