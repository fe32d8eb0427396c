"""Weights in diffusers layout: strict loading, shards, and diffusers' own loader."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import initialised, load_folder
from torch import nn

from cosmos_hydra.config import ModelConfig
from cosmos_hydra.errors import ConfigError, StageError
from cosmos_hydra.models.transformer import build_transformer
from cosmos_hydra.weights.diffusers import (
    WEIGHTS,
    is_transformer,
    save_transformer,
)
from cosmos_hydra.weights.locate import Format, Located
from cosmos_hydra.weights.open import check_architecture

MODEL = ModelConfig(
    name="two",
    num_layers=2,
    num_heads=2,
    head_dim=24,
    adaln_lora_dim=8,
    text_dim=32,
    rope_scale=[2.0, 1.0, 1.0],
    max_size=[4, 16, 16],
)


def transformer_with(seed: int) -> nn.Module:
    return initialised(MODEL, seed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with weights of seed 0."""
    save_transformer(transformer_with(0), MODEL, tmp_path / "transformer")
    return tmp_path / "transformer"


def located(folder: Path) -> Located:
    return Located(folder, Format.diffusers)


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_saved_weights_load_bitwise(folder: Path) -> None:
    other = transformer_with(1)
    load_folder(other, folder)
    assert_equal(other, transformer_with(0))


def test_loading_is_strict_and_lists_every_problem_at_once(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    del state["proj_out.weight"]
    del state["time_embed.norm.weight"]
    state["blocks.7.weight"] = torch.zeros(1)
    state["patch_embed.proj.weight"] = torch.zeros(48, 64)
    save_file(state, folder / WEIGHTS)
    with pytest.raises(StageError) as refusal:
        load_folder(transformer_with(1), folder)
    message = str(refusal.value)
    assert message.startswith(f"{folder} does not fit the model: ")
    assert set(message.partition("model: ")[2].split("; ")) == {
        "unexpected blocks.7.weight",
        "patch_embed.proj.weight is [48, 64], not [48, 68]",
        "missing proj_out.weight",
        "missing time_embed.norm.weight",
    }


def test_many_problems_are_cut_with_their_number(folder: Path) -> None:
    save_file({"something.weight": torch.zeros(1)}, folder / WEIGHTS)
    missing = len(transformer_with(0).state_dict())
    with pytest.raises(StageError, match=f"; and {missing + 1 - 20} more$"):
        load_folder(transformer_with(1), folder)


def shard(folder: Path, names: tuple[str, str]) -> None:
    """Replace the weight file of a folder by two and an index, as diffusers does."""
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    weight_map = {}
    for number, name in enumerate(names):
        part = {key: state[key] for key in sorted(state)[number::2]}
        weight_map |= dict.fromkeys(part, name)
        save_file(part, folder / name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def test_sharded_weights_load_bitwise(folder: Path) -> None:
    stem = WEIGHTS.removesuffix(".safetensors")
    shard(folder, tuple(f"{stem}-0000{n}-of-00002.safetensors" for n in (1, 2)))
    other = transformer_with(1)
    load_folder(other, folder)
    assert_equal(other, transformer_with(0))


def test_an_index_that_points_out_of_the_folder_is_refused(folder: Path) -> None:
    shard(folder, ("inside.safetensors", "../outside.safetensors"))
    before = transformer_with(1)
    with pytest.raises(StageError) as refusal:
        load_folder(before, folder)
    index = folder / f"{WEIGHTS}.index.json"
    assert str(refusal.value) == (
        f"{index} is no index of weights (../outside.safetensors is no plain file name)"
    )
    assert_equal(before, transformer_with(1))


def test_a_missing_shard_is_named(folder: Path) -> None:
    shard(folder, ("a.safetensors", "b.safetensors"))
    (folder / "b.safetensors").unlink()
    with pytest.raises(StageError, match=r"names files that are not there: b\.safetensors$"):
        load_folder(transformer_with(1), folder)


def test_only_safetensors_are_loaded(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(StageError, match=f"holds no {WEIGHTS}; only safetensors are loaded$"):
        load_folder(transformer_with(1), folder)


def test_a_file_that_is_cut_short_or_no_safetensors_file_is_one_line(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    for content in (b"", b"\x80\x04pickled by somebody", whole[:-1]):
        (folder / WEIGHTS).write_bytes(content)
        with pytest.raises(StageError, match=rf"{WEIGHTS} cannot be read \(.+\)$"):
            load_folder(transformer_with(1), folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}'])
def test_an_index_that_is_none_is_one_line(folder: Path, content: str) -> None:
    (folder / f"{WEIGHTS}.index.json").write_text(content)
    with pytest.raises(StageError, match=r"index\.json is no index of weights \(.+\)$"):
        load_folder(transformer_with(1), folder)


def test_bfloat16_weights_load_into_float32(folder: Path) -> None:
    state = {name: tensor.bfloat16() for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(state, folder / WEIGHTS)
    other = transformer_with(1)
    load_folder(other, folder)
    for name, tensor in other.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name].float())


def test_diffusers_loads_a_written_folder(folder: Path) -> None:
    from diffusers import CosmosTransformer3DModel

    loaded = CosmosTransformer3DModel.from_pretrained(folder)
    assert_equal(loaded, transformer_with(0))
    assert loaded.config.in_channels == 16
    assert loaded.config.out_channels == 16
    assert loaded.config.concat_padding_mask is True
    assert loaded.config.extra_pos_embed_type == "learnable"
    ours = build_transformer(MODEL).config
    for name in ("num_layers", "num_attention_heads", "attention_head_dim", "text_embed_dim"):
        assert loaded.config[name] == ours[name]
    for name in ("rope_scale", "max_size", "patch_size"):
        assert tuple(loaded.config[name]) == tuple(ours[name])


def test_a_folder_written_by_diffusers_loads(folder: Path, tmp_path: Path) -> None:
    from diffusers import CosmosTransformer3DModel

    CosmosTransformer3DModel.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    assert is_transformer(tmp_path / "theirs")
    check_architecture(located(tmp_path / "theirs"), MODEL, "resume.path")
    other = transformer_with(1)
    load_folder(other, tmp_path / "theirs")
    assert_equal(other, transformer_with(0))


def test_another_architecture_is_refused_with_every_number(folder: Path) -> None:
    other = ModelConfig(**{**vars(MODEL), "num_layers": 3, "rope_scale": [1.0, 1.0, 1.0]})
    with pytest.raises(ConfigError) as refusal:
        check_architecture(located(folder), other, "resume.path")
    assert str(refusal.value) == (
        f"resume.path={folder} is another architecture: num_layers 2 (model=two has 3), "
        "rope_scale [2.0, 1.0, 1.0] (model=two has [1.0, 1.0, 1.0]); "
        "choose the model= it belongs to, or other weights"
    )
    check_architecture(located(folder), MODEL, "resume.path")


@pytest.mark.parametrize("content", ["{", "[]", '{"_class_name": "AutoencoderKLCosmos"}'])
def test_a_folder_with_another_config_is_no_transformer(tmp_path: Path, content: str) -> None:
    assert not is_transformer(tmp_path)
    (tmp_path / "config.json").write_text(content)
    assert not is_transformer(tmp_path)
