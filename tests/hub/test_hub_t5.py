"""google-t5/t5-11b has its weights in one pickle alone: the encoder is made out of it, once."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import Repo
from hub_world import T5, World, config_of, world_of
from safetensors import safe_open
from tiny_folders import T5_DIM, WORDS, write_tiny_t5

from cosmos_hydra.config import ModelConfig, TextEncoderConfig, TextEncoderKind
from cosmos_hydra.errors import StageError
from cosmos_hydra.hub import t5
from cosmos_hydra.hub.cache import fill_paths
from cosmos_hydra.models.text import T5TextEncoder, load_text_encoder

CPU = torch.device("cpu")
TYPED = (
    *("model.weights.path=here", "model.tokenizer.path=here"),
    f"model.text_encoder.repo={T5}",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an encoder and its tokenizer as safetensors."""
    folder = tmp_path_factory.mktemp("t5")
    write_tiny_t5(folder)
    return folder


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with world_of(tmp_path, monkeypatch) as made:
        yield made


def pickled(folder: Path, is_archive: bool) -> dict[str, bytes]:
    """Return the files of a repository with encoder and decoder in one pickle, as t5-11b has."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    state["decoder.block.0.layer.0.SelfAttention.q.weight"] = torch.ones(4, 4)
    state["lm_head.weight"] = torch.ones(len(WORDS), T5_DIM)
    path = folder / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=is_archive)
    assert zipfile.is_zipfile(path) is is_archive
    names = ("config.json", "tokenizer.json", "pytorch_model.bin")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize("is_archive", [True, False], ids=["zip", "legacy"])
def test_the_encoder_is_made_once_and_gives_what_the_original_gives(
    world: World, folder: Path, is_archive: bool
) -> None:
    world.patch.setattr(t5, "SHARD_BYTES", 5000)
    world.hub.repos[T5] = Repo(pickled(folder, is_archive))
    outcome = world.download(*TYPED)
    assert (outcome.code, outcome.stderr) == (0, "")
    commit = world.hub.repos[T5].commit
    place = world.home / "cosmos-hydra/converted/models--google-t5--t5-11b" / commit
    assert outcome.stdout.splitlines()[-1] == f"text encoder: {place}"
    assert f"converting pytorch_model.bin into {place}\n" in outcome.stdout
    assert world.fetched(T5) == world.hub.repos[T5].files

    model = ModelConfig(text_tokens=8, text_dim=T5_DIM, text_encoder=TextEncoderConfig(repo=T5))
    fill_paths(model)
    assert model.text_encoder.path == str(place)
    made, original = load_text_encoder(model, CPU), T5TextEncoder(folder, 8, CPU)
    one, other = (e.encode("the robot arm lifts").embedding_TD for e in (made, original))
    assert torch.allclose(one.float(), other.float(), atol=0.05)
    assert one.float().abs().mean() > 0.1
    index = json.loads((place / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    assert {name.split(".")[0] for name in index} == {"shared", "encoder"}
    for file in set(index.values()):
        with safe_open(place / file, framework="pt") as tensors:
            kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        assert kinds == {"BF16"}

    count = len(world.hub.requests)
    again = world.download(*TYPED)
    assert again.code == 0
    assert "converting" not in again.stdout
    assert len(world.hub.requests) == count


def test_a_conversion_that_was_cut_off_is_made_again_without_the_hub(
    world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.hub.repos[T5] = Repo(pickled(folder, True))

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(t5, "save_file", stop)
        with pytest.raises(KeyboardInterrupt):
            world.download(*TYPED)
    model = config_of(*TYPED).model
    assert model.text_encoder.path is None
    count = len(world.hub.requests)
    outcome = world.download(*TYPED)
    assert outcome.code == 0
    assert len(world.hub.requests) == count
    assert list((world.home / "cosmos-hydra/converted").rglob("*.tmp")) == []


def test_safetensors_are_preferred_to_the_pickle(world: World, folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    world.hub.repos[T5] = Repo({**pickled(folder, True), "model.safetensors": weights})
    outcome = world.download(*TYPED)
    assert outcome.stdout.splitlines()[-1] == f"text encoder: {world.snapshot(T5)}"
    assert set(world.fetched(T5)) == {"config.json", "tokenizer.json", "model.safetensors"}
    config = TextEncoderConfig(TextEncoderKind.t5, str(world.snapshot(T5)))
    model = ModelConfig(text_tokens=8, text_dim=T5_DIM, text_encoder=config)
    assert load_text_encoder(model, CPU).encode("a robot").mask_T.sum() == 3


def refusal(folder: Path, content: Any, is_archive: bool = True) -> str:
    torch.save(content, folder / t5.BIN, _use_new_zipfile_serialization=is_archive)
    (folder / "config.json").write_text("{}")
    with pytest.raises(StageError) as caught:
        t5.convert(folder, folder / "out")
    assert not (folder / "out").exists()
    return str(caught.value).replace(str(folder / t5.BIN), "BIN")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("owned"),)


@pytest.mark.parametrize("is_archive", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_is_no_t5_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_archive: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    encoder = "encoder.block.0.weight"
    assert refusal(tmp_path, {encoder: torch.ones(2)}, is_archive) == (
        "BIN holds no encoder of T5; choose another repository"
    )
    more = "BIN holds more than tensors; choose another repository"
    assert refusal(tmp_path, {"shared.weight": 1.0}, is_archive) == more
    for content in ([1, 2], {1: torch.ones(2)}):
        line = refusal(tmp_path, content, is_archive)
        assert line == "BIN cannot be read (no table of tensors)"
    line = refusal(tmp_path, {"shared.weight": Evil()}, is_archive)
    assert line.startswith("BIN cannot be read (")
    assert not Path("owned").exists()


def test_an_archive_that_torch_did_not_write_is_refused(tmp_path: Path) -> None:
    torch.save({"shared.weight": torch.zeros(1000)}, tmp_path / "whole")
    compressed = zipfile.ZipFile(tmp_path / t5.BIN, "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "whole") as whole, compressed as packed:
        for part in whole.infolist():
            packed.writestr(part.filename, whole.read(part))
    with pytest.raises(StageError, match=r"cannot be read \(it is compressed\)"):
        t5.convert(tmp_path, tmp_path / "out")


def test_the_old_format_needs_memory_for_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(t5, "host_free_bytes", lambda: 100)
    line = refusal(tmp_path, {"shared.weight": torch.ones(200)}, is_archive=False)
    assert line == (
        "BIN must be read into memory once, 0.0 GB, of which 0.0 are free; use a machine with "
        "more, or the text encoder of the model's own repository"
    )
