"""The command `stage=preprocess` with the real classes of tokenizer and text encoder."""

import json
import weakref
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, Command
from tiny_folders import T5_DIM, write_tiny_cosmos, write_tiny_t5

from cosmos_hydra.config import ModelConfig, TextEncoderConfig, TextEncoderKind
from cosmos_hydra.data.store import open_store
from cosmos_hydra.data.video import decode, to_signed
from cosmos_hydra.models.text import T5TextEncoder, load_text_encoder
from cosmos_hydra.models.tokenizer import CosmosTokenizer

CPU = torch.device("cpu")
ENCODERS = (
    "model.tokenizer.kind=cosmos",
    "model.tokenizer.path=weights/vae",
    "model.text_encoder.kind=t5",
    "model.text_encoder.path=weights/text_encoder",
    f"model.text_dim={T5_DIM}",
)


def test_preprocess_uses_the_folders_and_lets_the_encoders_go(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse = torch.rand(4, 3, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    data = torch.nn.functional.interpolate(coarse, size=(9, 48, 64), mode="trilinear") * 2 - 1
    write_tiny_cosmos(tmp_path / "weights/vae", data)
    write_tiny_t5(tmp_path / "weights/text_encoder", tmp_path / "weights/tokenizer")
    made: list[weakref.ref[Any]] = []
    for encoder_class, name in ((CosmosTokenizer, "autoencoder"), (T5TextEncoder, "encoder")):
        load_once = vars(encoder_class)[name].func

        def watched(self: Any, load: Any = load_once) -> Any:
            loaded = load(self)
            made.append(weakref.ref(loaded))
            return loaded

        once = cached_property(watched)
        once.__set_name__(encoder_class, name)
        monkeypatch.setattr(encoder_class, name, once)
    outcome = command("stage=preprocess", *SMALL, *ENCODERS, "data.path=samples/real", cwd=tmp_path)
    assert outcome.code == 0, outcome.stderr
    assert len(made) == 2
    assert [reference() for reference in made] == [None, None]

    folder = tmp_path / "samples/real"
    assert not list(folder.glob("tokenizer*"))
    store = open_store(str(folder))
    assert store.manifest["tokenizer"]["kind"] == "cosmos"
    assert store.manifest["text_encoder"]["kind"] == "t5"
    tokenizer = CosmosTokenizer(tmp_path / "weights/vae", CPU)
    text_encoder = TextEncoderConfig(TextEncoderKind.t5, str(tmp_path / "weights/text_encoder"))
    model = ModelConfig(text_tokens=16, text_dim=T5_DIM, text_encoder=text_encoder)
    texts = load_text_encoder(model, CPU)
    entry = store.manifest["samples"][0]
    sample = store.load(entry["id"])
    video = tmp_path / "samples/synthetic-videos" / entry["video"]
    start = json.loads((folder / f"{entry['id']}.info.json").read_text())["start_frame"]
    frames_FHWC = decode(video, list(range(start, start + 9)))
    latent_BCFHW = tokenizer.encode(to_signed(frames_FHWC.permute(3, 0, 1, 2))[None])
    assert torch.equal(sample.latent_CFHW, latent_BCFHW[0].to(torch.bfloat16))
    assert torch.equal(sample.text_TD, texts.encode(entry["caption"]).embedding_TD)


def test_folders_that_are_not_there_are_named_before_any_video_is_encoded(
    tmp_path: Path, command: Command
) -> None:
    outcome = command("stage=preprocess", *SMALL, *ENCODERS, cwd=tmp_path)
    assert outcome.code == 2
    assert outcome.stderr == (
        "cosmos-hydra: model.tokenizer.path=weights/vae holds no config.json; "
        "it should be a folder of AutoencoderKLCosmos in diffusers layout\n"
    )
    assert not (tmp_path / "samples").exists()
