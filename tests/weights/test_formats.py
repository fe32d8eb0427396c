"""Every format goes in, every format comes out, bit for bit, and what does not fit is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from foreign_weights import (
    HEADS,
    LAYERS,
    MODEL,
    Weights,
    nemo_weights,
    original_weights,
    random_weights,
    read_zarr,
    write_original,
    write_torch_dist,
    write_zarr,
)
from safetensors.torch import save_file
from small_runs import assert_same_tensors, small_config

from cosmos_hydra.config import ModelConfig
from cosmos_hydra.errors import ConfigError, StageError
from cosmos_hydra.models.transformer import build_transformer
from cosmos_hydra.reading import read_tensors
from cosmos_hydra.weights import diffusers
from cosmos_hydra.weights.locate import locate
from cosmos_hydra.weights.open import check_architecture, open_weights
from cosmos_hydra.weights.source import Source

WIDTHS = {"text2world": False, "video2world": True}
# where each lies below `sources`, and what it is said to be
SOURCES = {
    "diffusers": "diffusers folder",
    "original": "original checkpoint",
    "nested": "original checkpoint",
    "zarr1": "NeMo checkpoint (zarr)",
    "zarr2": "NeMo checkpoint (zarr)",
    "zarr4": "NeMo checkpoint (zarr)",
    "zarr8": "NeMo checkpoint (zarr)",
    "torch_dist": "NeMo checkpoint (torch_dist)",
}


def model_of(width: str) -> ModelConfig:
    return small_config(Path(), *MODEL, f"model.condition_mask={WIDTHS[width]}").model


def write_all(folder: Path, weights: Weights, model: ModelConfig) -> None:
    (folder / "diffusers").mkdir(parents=True)
    save_file(weights, folder / "diffusers" / diffusers.WEIGHTS)
    diffusers.write_config(model, folder / "diffusers")
    write_original(folder / "original" / "model.pt", weights)
    write_original(folder / "nested" / "model.pt", weights, nested="state_dict")
    for tp in (1, 2, 4, 8):
        write_zarr(folder / f"zarr{tp}", weights, tp)
    write_torch_dist(folder / "torch_dist", weights)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the same weights in every format, of both widths; do not write there."""
    folder = tmp_path_factory.mktemp("sources")
    for width in WIDTHS:
        model = model_of(width)
        write_all(folder / width, random_weights(model), model)
    return folder


def opened(path: Path, model: ModelConfig) -> Source:
    with torch.device("meta"):
        parameters = build_transformer(model).named_parameters()
    found = locate(str(path), "checkpoint")
    return open_weights(found, {name: p.shape for name, p in parameters})


def content(path: Path, model: ModelConfig) -> Weights:
    source = opened(path, model)
    return {name: source.read(name).clone() for name in source.entries}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_format_is_recognised_and_read_bit_for_bit(
    sources: Path, source: str, width: str
) -> None:
    model, path = model_of(width), sources / width / source
    found = locate(str(path), "checkpoint")
    assert str(found).startswith(f"{SOURCES[source]} {path}")
    check_architecture(found, model, "checkpoint")
    assert_same_tensors(content(path, model), random_weights(model))


@pytest.mark.parametrize(
    ("width", "names"),
    [
        ("text2world", ["original", "torch_dist"]),
        ("video2world", ["torch_dist"]),
        pytest.param("text2world", [*SOURCES], marks=pytest.mark.slow),
        pytest.param("video2world", [*SOURCES], marks=pytest.mark.slow),
    ],
)
def test_every_pair_of_formats_converts_bit_for_bit(
    command: Command, sources: Path, tmp_path: Path, width: str, names: list[str]
) -> None:
    weights, model = random_weights(model_of(width)), model_of(width)
    typed = [*MODEL, f"model.condition_mask={WIDTHS[width]}"]
    for source in names:
        for target in ("diffusers", "original", "nemo"):
            out = tmp_path / f"{source}-{target}"
            asked = [f"export.format={target}", f"export.path={out}"]
            asked += ["export.tp=4"] if target == "nemo" else []
            given = f"checkpoint={sources / width / source}"
            done = command("stage=export", given, *asked, *typed, cwd=tmp_path)
            assert (done.code, done.stderr) == (0, "")
            assert f"exporting {SOURCES[source]} {sources / width / source}" in done.stdout
            # by other means than our own readers
            match target:
                case "diffusers":
                    assert_same_tensors(read_tensors(out / diffusers.WEIGHTS), weights)
                case "original":
                    found = torch.load(out / "model.pt", weights_only=True)
                    assert found.pop("net.pos_embedder.seq").tolist() == [*range(8)]
                    wanted = original_weights(weights)
                    assert_same_tensors(found, {f"net.{n}": t for n, t in wanted.items()})
                case "nemo":
                    arrays = read_zarr(out)
                    assert arrays.pop("module.pos_embedder.seq").tolist() == [*range(8)]
                    assert_same_tensors(arrays, nemo_weights(weights))
            # and by them
            assert_same_tensors(content(out, model), weights)


def test_parts_of_ranks_are_chunks_of_an_exported_nemo_checkpoint(
    command: Command, sources: Path, tmp_path: Path
) -> None:
    given = f"checkpoint={sources / 'text2world' / 'original' / 'model.pt'}"
    for tp in (1, 2, 8):
        asked = [given, "export.format=nemo", f"export.path=out{tp}", f"export.tp={tp}", *MODEL]
        assert command("stage=export", *asked, cwd=tmp_path).code == 0
        key = "module.decoder.layers.full_self_attention.linear_proj.weight"
        header = json.loads((tmp_path / f"out{tp}" / key / ".zarray").read_text())
        assert header["shape"] == [LAYERS, 192, 192]
        assert header["chunks"] == [1, 192, 192 // tp]
    asked = [given, "export.format=nemo", "export.path=out", "export.tp=3", *MODEL]
    refused = command("stage=export", *asked, cwd=tmp_path)
    assert (refused.code, refused.stderr) == (
        2,
        f"cosmos-hydra: export.tp=3 does not divide {HEADS} heads\n",
    )


def test_a_conversion_says_so_on_its_card_and_may_change_the_dtype(
    command: Command, sources: Path, tmp_path: Path
) -> None:
    path = sources / "text2world" / "zarr2"
    asked = [f"checkpoint={path}", "export.path=out", *MODEL]
    done = command("stage=export", *asked, cwd=tmp_path)
    digest = locate(str(path), "checkpoint").digest
    assert "in bfloat16, float32 into out\n" in done.stdout
    assert done.stdout.splitlines()[1].endswith(f"; read from sha256 {digest}")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"- converted from: NeMo checkpoint (zarr) `zarr2` (sha256 {digest})" in card
    assert "derivative model under the [NVIDIA Open Model License]" in card
    assert "library_name: diffusers" in card
    asked = [f"checkpoint={path}", "export.path=nemo", "export.format=nemo", *MODEL]
    assert command("stage=export", *asked, cwd=tmp_path).code == 0
    assert "library_name" not in (tmp_path / "nemo" / "README.md").read_text()
    asked = [f"checkpoint={path}", "export.path=wide", "export.dtype=fp32", *MODEL]
    assert command("stage=export", *asked, cwd=tmp_path).code == 0
    wide = read_tensors(tmp_path / "wide" / diffusers.WEIGHTS)
    weights = random_weights(model_of("text2world"))
    assert_same_tensors(wide, {name: tensor.float() for name, tensor in weights.items()})


@pytest.mark.parametrize("source", ["original", "zarr2", "torch_dist", "diffusers"])
def test_weights_of_another_size_are_refused_with_the_numbers(
    command: Command, sources: Path, tmp_path: Path, source: str
) -> None:
    path = sources / "video2world" / source
    typed = ["stage=export", f"checkpoint={path}", "export.path=out", *MODEL]
    refused = command(*typed, "model.num_layers=3", cwd=tmp_path)
    assert refused.code == 2
    assert f"{path} " in refused.stderr.replace("/model.pt", "")
    assert "num_layers 2 (model=tiny has 3)" in refused.stderr
    inputs = {"diffusers": "in_channels 17 (model=tiny has 16)"}
    assert inputs.get(source, "input channels 18 (model=tiny has 17)") in refused.stderr
    assert refused.stderr.endswith("; choose the model= it belongs to, or other weights\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "problems"),
    [
        (
            "original",
            {
                "missing net.affline_norm.weight",
                "net.final_layer.linear.weight is [64, 8], not [64, 192]",
                "unexpected net.blocks.block0.blocks.3.weight",
            },
        ),
        (
            "zarr",
            {
                "missing time_embed.norm.weight (in module.affline_norm.weight)",
                "module.final_layer.linear.weight is [64, 8], not [64, 192]",
                "unexpected module.decoder.layers.mlp.linear_fc3.weight",
            },
        ),
        (
            "torch_dist",
            {
                "missing time_embed.norm.weight (in module.affline_norm.weight)",
                "module.final_layer.linear.weight is [64, 8], not [64, 192]",
                "unexpected module.decoder.layers.mlp.linear_fc3.weight",
            },
        ),
    ],
)
def test_every_key_that_does_not_fit_is_listed_in_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, problems: set[str]
) -> None:
    import foreign_weights

    model = model_of("text2world")
    weights = random_weights(model)
    names = original_weights(weights)

    def changed(*_: Any) -> Weights:
        found = {n: t for n, t in names.items() if n != "affline_norm.weight"}
        found["final_layer.linear.weight"] = torch.zeros(64, 8)
        return found

    if source == "original":
        table = {f"net.{name}": tensor for name, tensor in changed().items()}
        table["net.blocks.block0.blocks.3.weight"] = torch.zeros(1)
        torch.save(table, tmp_path / "model.pt")
    else:
        arrays = nemo_weights(weights)
        del arrays["module.affline_norm.weight"]
        arrays["module.final_layer.linear.weight"] = torch.zeros(64, 8)
        arrays["module.decoder.layers.mlp.linear_fc3.weight"] = torch.zeros(2, 4, 4)
        monkeypatch.setattr(foreign_weights, "nemo_weights", lambda _: arrays)
        (write_zarr if source == "zarr" else write_torch_dist)(tmp_path / "nemo", {})
    path = tmp_path / ("model.pt" if source == "original" else "nemo")
    with pytest.raises(StageError) as refusal:
        opened(path, model)
    message = str(refusal.value)
    assert message.startswith(f"{path} does not fit the model: ")
    assert set(message.partition("model: ")[2].split("; ")) == problems


@pytest.mark.parametrize("write", [write_zarr, write_torch_dist])
def test_adaln_that_nemo_trained_beside_its_diagonal_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    import foreign_weights

    arrays = nemo_weights(random_weights(model_of("text2world")))
    arrays["module.decoder.layers.adaLN.adaLN_modulation.2.weight"][1, 3, 20] = 0.5
    monkeypatch.setattr(foreign_weights, "nemo_weights", lambda _: arrays)
    write(tmp_path / "nemo", {})
    with pytest.raises(
        StageError,
        match=r"nemo has a dense adaLN, which NeMo trained beside its diagonal \(layer 1: 0\.5 "
        r"beside a diagonal of \d.*; 1 layers in all\); only NeMo can hold that: start from the "
        r"released weights instead$",
    ):
        opened(tmp_path / "nemo", model_of("text2world"))


KEY = "module.decoder.layers.mlp.linear_fc1.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda key: (key / "1.1.0").unlink(), rf"lacks the file {KEY}/1\.1\.0; get the"),
        (
            lambda key: (key / "1.1.0").write_bytes(b"short"),
            rf"{KEY}/1\.1\.0 cannot be read \(5 bytes, not 147456\); get the checkpoint again$",
        ),
        (
            lambda key: change(key, compressor={"id": "zlib"}),
            rf"{KEY} cannot be read \(compressor is not read here\)",
        ),
        (
            lambda key: change(key, dtype="|O"),
            rf"{KEY} cannot be read \(dtype \|O in chunks of \[1, 384, 192\]\)",
        ),
        (
            lambda key: change(key, shape=[2, -1]),
            rf"{KEY} cannot be read \(\[2, -1\] is no shape\)",
        ),
        (
            lambda key: change(key, shape=[10**12, 768, 192]),
            rf"{KEY} is \[1000000000000, 768, 192\], which is no stack of layers",
        ),
        (lambda key: change(key, order="F"), rf"{KEY} cannot be read \(order is not read here\)"),
        (lambda key: (key / ".zarray").write_text("{"), rf"{KEY} cannot be read \("),
    ],
)
def test_a_damaged_zarr_array_is_one_line(
    sources: Path, tmp_path: Path, damage: Any, message: str
) -> None:
    shutil.copytree(sources / "text2world" / "zarr2", tmp_path / "nemo")
    damage(tmp_path / "nemo" / KEY)
    with pytest.raises(StageError, match=message):
        content(tmp_path / "nemo", model_of("text2world"))


def change(key: Path, **values: Any) -> None:
    header = json.loads((key / ".zarray").read_text())
    (key / ".zarray").write_text(json.dumps(header | values))


def test_a_distributed_checkpoint_that_lacks_a_layer_or_a_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import foreign_weights

    model = model_of("text2world")
    write_torch_dist(tmp_path / "whole", random_weights(model))
    (tmp_path / "whole" / "__0_0.distcp").unlink()
    with pytest.raises(StageError, match=r"checkpoint .* cannot be read \("):
        content(tmp_path / "whole", model)
    in_layers = foreign_weights.in_layers

    def lacking(tensor: torch.Tensor) -> torch.Tensor:
        tensor = in_layers(tensor)
        items = tensor.__create_write_items__  # type: ignore[attr-defined]
        tensor.__create_write_items__ = lambda *whole: items(*whole)[:1]  # type: ignore[attr-defined]
        return tensor

    monkeypatch.setattr(foreign_weights, "in_layers", lacking)
    write_torch_dist(tmp_path / "nemo", random_weights(model))
    with pytest.raises(StageError, match=r"the folder does not hold all of module\.decoder\."):
        content(tmp_path / "nemo", model)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + bytes(18)])
def test_an_original_file_that_is_none_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(StageError, match=r"model\.pt cannot be read \(.+\)$"):
        opened(tmp_path, model_of("text2world"))


def test_names_given_twice_and_what_is_no_tensor_are_listed(tmp_path: Path) -> None:
    model = model_of("text2world")
    table: dict[str, Any] = dict(original_weights(random_weights(model)))
    table["net.affline_norm.weight"] = table["affline_norm.weight"]
    table["net.final_layer.linear.weight"] = "no tensor"
    del table["final_layer.linear.weight"]
    torch.save(table, tmp_path / "model.pt")
    with pytest.raises(StageError) as refusal:
        opened(tmp_path, model)
    assert set(str(refusal.value).partition("model: ")[2].split("; ")) == {
        "affline_norm.weight twice, with net. and without",
        "unexpected net.final_layer.linear.weight",
        "missing net.final_layer.linear.weight",
    }


def test_integers_are_no_weights(tmp_path: Path) -> None:
    model = model_of("text2world")
    weights = random_weights(model)
    table = {f"net.{name}": tensor for name, tensor in original_weights(weights).items()}
    table["net.affline_norm.weight"] = table["net.affline_norm.weight"].long()
    torch.save(table, tmp_path / "model.pt")
    with pytest.raises(StageError, match=r"net\.affline_norm\.weight is int64, not a floating"):
        opened(tmp_path, model)


def test_a_distributed_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a run, a step of a run, nor weights of"):
        locate(str(tmp_path), "checkpoint")
