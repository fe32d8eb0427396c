"""What was downloaded is found by the other stages, without the Hub and without typing a path."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Command
from hub_world import TOKENIZER, VIDEOS, WEIGHTS, World, config_of, world_of
from huggingface_hub import constants, snapshot_download

from cosmos_hydra.config import ModelConfig, WeightsFormat
from cosmos_hydra.hub.cache import fill_paths

NONE = {"weights": None, "tokenizer": None, "text_encoder": None}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with world_of(tmp_path, monkeypatch) as made:
        yield made


def filled(*typed: str, with_weights: bool = True, model: str = "7b") -> dict[str, str | None]:
    """Return the paths that a config gets."""
    found: ModelConfig = copy.deepcopy(config_of(*typed, model=model).model)
    fill_paths(found, with_weights)
    return {name: getattr(found, name).path for name in NONE}


def test_paths_are_filled_once_everything_is_there(world: World) -> None:
    assert filled() == NONE
    assert world.download().code == 0
    count = len(world.hub.requests)
    expected = {
        "weights": f"{world.snapshot(WEIGHTS)}/transformer",
        "tokenizer": f"{world.snapshot(TOKENIZER)}/vae",
        "text_encoder": f"{world.snapshot(WEIGHTS)}/text_encoder",
    }
    assert filled() == expected
    assert filled(with_weights=False) == {**expected, "weights": None}
    assert filled("model.weights.from_scratch=true")["weights"] is None
    assert filled("model.weights.path=mine")["weights"] == "mine"
    assert filled("model.weights.revision=v1")["weights"] is None
    assert filled("model.tokenizer.kind=toy")["tokenizer"] is None
    assert filled(model="tiny") == NONE
    assert len(world.hub.requests) == count
    # a file that has gone, or is not whole
    file = world.snapshot(WEIGHTS) / "transformer/config.json"
    file.resolve().write_bytes(b"{")
    assert filled() == {**expected, "weights": None}
    file.unlink()
    assert filled() == {**expected, "weights": None}


@pytest.mark.parametrize(("form", "place"), [("original", "model.pt"), ("nemo", "nemo")])
def test_each_format_is_found(world: World, form: str, place: str) -> None:
    typed = f"model.weights.format={form}"
    assert world.download(typed).code == 0
    assert filled(typed)["weights"] == f"{world.snapshot(WEIGHTS)}/{place}"
    assert filled(f"model.weights.format={WeightsFormat.diffusers}")["weights"] is None


def test_what_another_tool_downloaded_is_found_by_its_branch(world: World) -> None:
    folder = Path(snapshot_download(WEIGHTS))
    index = folder / "transformer/diffusion_pytorch_model.safetensors.index.json"
    names = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for file, listed in (
        (index, names),
        (folder / "text_encoder/model.safetensors.index.json", []),
    ):
        file.unlink()
        file.write_text(json.dumps({"weight_map": {name: name for name in listed}}))
    expected = {
        "weights": f"{folder}/transformer",
        "tokenizer": None,
        "text_encoder": f"{folder}/text_encoder",
    }
    assert filled() == expected
    assert filled("model.weights.format=original")["weights"] == f"{folder}/model.pt"
    # nothing says whether all of it is there
    assert filled("model.weights.format=nemo")["weights"] is None
    assert filled("model.weights.revision=v1")["weights"] is None
    assert filled(f"model.weights.revision={folder.name}")["weights"] == f"{folder}/transformer"
    (folder / "transformer" / names[1]).unlink()
    assert filled() == {**expected, "weights": None}


def test_offline_everything_downloaded_is_there(world: World) -> None:
    assert world.download().code == 0
    world.patch.setattr(constants, "HF_HUB_OFFLINE", True)
    count = len(world.hub.requests)
    outcome = world.download()
    assert (outcome.code, outcome.stderr) == (0, "")
    outcome = world.download("download.sample_videos=true")
    assert outcome.stderr == (
        f"download.sample_videos=true is not in {world.home}/hub and HF_HUB_OFFLINE is set; unset "
        f"it, or download on a machine with network and share HF_HOME"
    )
    assert "  offline " in outcome.stdout
    assert len(world.hub.requests) == count
    assert VIDEOS in outcome.stdout


def test_what_another_tool_downloaded_is_enough_without_the_hub(world: World) -> None:
    folder = Path(snapshot_download(TOKENIZER))
    typed = [f"model.{name}.path=here" for name in ("weights", "text_encoder")]
    world.patch.setattr(constants, "HF_HUB_OFFLINE", True)
    outcome = world.download(*typed)
    assert outcome.code == 0
    assert outcome.stdout.splitlines()[-2:] == [
        f"{TOKENIZER}: found in the cache, not verified: the Hub was not asked",
        f"tokenizer: {folder}/vae",
    ]


RUN = "run: cosmos-hydra stage=download model=7b, or set it to"
NEEDED = {
    "weights": (
        f"model=7b is not trained from scratch; {RUN} weights of diffusers, the original code or "
        f"NeMo"
    ),
    "tokenizer": f"the cosmos tokenizer needs its weights; {RUN} the folder of AutoencoderKLCosmos",
    "text_encoder": f"the t5 text encoder needs its weights; {RUN} the folder of the T5 encoder",
}


def test_a_stage_that_lacks_a_path_names_the_download_until_it_was_made(
    world: World, command: Command
) -> None:
    pipeline = ("stage=pipeline", "model=7b", "trainer.max_steps=0")
    complaint = "cosmos-hydra: trainer.max_steps=0 is too small; at least 1"
    outcome = command(*pipeline, cwd=world.work)
    needed = [f"cosmos-hydra: model.{name}.path=null but {why}" for name, why in NEEDED.items()]
    assert outcome.stderr.splitlines() == [complaint, *needed]
    assert world.download().code == 0
    assert command(*pipeline, cwd=world.work).stderr.splitlines() == [complaint]


def test_without_a_place_to_download_from_there_is_a_line(world: World, command: Command) -> None:
    typed = [f"model.{name}.repo=null" for name in NONE]
    outcome = command("stage=download", "model=7b", *typed, cwd=world.work)
    assert outcome.code == 2
    assert outcome.stderr.splitlines() == [
        f"cosmos-hydra: model.{name}.repo=null, so stage=download does not know where to find it; "
        f"set it to a repository of the Hugging Face Hub, or set model.{name}.path"
        for name in NONE
    ]
