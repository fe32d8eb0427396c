"""From repositories laid out like the released ones to a video, no path typed: small real weights.

One process downloads, the same then makes samples, trains and generates without the Hub.
"""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import SMALL, Command
from hub_server import Repo
from hub_world import TOKENIZER, WEIGHTS, World, config_of, world_of
from huggingface_hub import constants
from small_runs import initialised
from tiny_folders import T5_DIM, write_tiny_cosmos, write_tiny_t5

from cosmos_hydra.weights.diffusers import save_transformer

SIZES = (
    *("model.num_layers=1", "model.num_heads=2", "model.head_dim=24", "model.adaln_lora_dim=8"),
    *(f"model.text_dim={T5_DIM}", "model.text_tokens=16", "model.max_size=[4,16,16]"),
)
MODEL = ("model=7b", *(typed for typed in SMALL if not typed.startswith("model.")), *SIZES)
CLIP = (
    "trainer.max_steps=1",
    "generate.guidance=0",
    "data.synthetic.num_videos=3",
    "log.report=false",
)


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    model = config_of(*SIZES).model
    pipeline, tokenizer = tmp_path / "made/pipeline", tmp_path / "made/tokenizer"
    save_transformer(initialised(model, 0), model, pipeline / "transformer")
    write_tiny_t5(pipeline / "text_encoder", pipeline / "tokenizer")
    (pipeline / "model_index.json").write_text("{}")
    coarse = torch.rand(4, 3, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    data = torch.nn.functional.interpolate(coarse, size=(9, 48, 64), mode="trilinear") * 2 - 1
    write_tiny_cosmos(tokenizer / "vae", data)
    repos = {WEIGHTS: Repo(files_below(pipeline)), TOKENIZER: Repo(files_below(tokenizer))}
    with world_of(tmp_path, monkeypatch, repos) as made:
        yield made


def test_a_download_is_all_that_a_pipeline_and_a_later_generation_need(
    world: World, command: Command
) -> None:
    outcome = command("stage=download", *MODEL, cwd=world.work)
    assert (outcome.code, outcome.stderr) == (0, "")
    printed = shlex.split(outcome.stdout.splitlines()[-1].removeprefix("next: "))[1:]
    world.patch.setattr(constants, "HF_HUB_OFFLINE", True)
    count = len(world.hub.requests)
    outcome = command("stage=pipeline", *MODEL, *CLIP, cwd=world.work)
    assert outcome.code == 0, outcome.stderr
    run = world.work / "runs/7b-synthetic"
    assert len(list((run / "videos").glob("*_seed1_??????.mp4"))) == 1
    manifest = run / "checkpoints/step_000001/manifest.json"
    place = world.snapshot(WEIGHTS)
    found = json.loads(manifest.read_text())["config"]["model"]
    assert found["weights"]["path"] == f"{place}/transformer"
    assert found["text_encoder"]["path"] == f"{place}/text_encoder"
    # the released weights by the printed command, at this clip's size
    outcome = command(*printed, *MODEL[1:], *CLIP, "generate.out=released", cwd=world.work)
    assert outcome.code == 0, outcome.stderr
    assert len(list((world.work / "released").glob("*_seed1_??????.mp4"))) == 1
    assert len(world.hub.requests) == count

    # as on another machine, where the cache lies elsewhere
    moved = world.folder / "elsewhere"
    world.home.rename(moved)
    world.patch.setattr(constants, "HF_HOME", str(moved))
    world.patch.setattr(constants, "HF_HUB_CACHE", str(moved / "hub"))
    outcome = command(
        *("stage=generate", f"checkpoint={run}", "generate.prompt=a robot", "generate.steps=2"),
        cwd=world.work,
    )
    assert outcome.code == 0, outcome.stderr
    assert len(list((run / "videos").glob("*_seed1_??????.mp4"))) == 2
    moved.rename(world.folder / "gone")
    outcome = command(
        *("stage=generate", f"checkpoint={run}", "generate.prompt=a red cube"), cwd=world.work
    )
    assert outcome.code == 2
    assert outcome.stderr.startswith(
        f"cosmos-hydra: model.tokenizer.path={world.home}/hub/models--nvidia--Cosmos-1.0-Tokenizer"
    )
