"""One sound folder of everything that the program reads, and how each file of it is read."""

import itertools
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from foreign_weights import write_original, write_torch_dist, write_zarr
from small_runs import initialised, small_config
from tiny_folders import T5_DIM, write_tiny_cosmos, write_tiny_t5

from cosmos_hydra import config as schema
from cosmos_hydra import files, runs
from cosmos_hydra.config import (
    ModelConfig,
    SampleFormat,
    TextEncoderConfig,
    TextEncoderKind,
    TokenizerConfig,
    TokenizerKind,
)
from cosmos_hydra.data.layout import Layout
from cosmos_hydra.data.store import open_store
from cosmos_hydra.data.writer import SampleWriter, Texts
from cosmos_hydra.engines.torch import checkpoint, state
from cosmos_hydra.engines.torch.mesh import join
from cosmos_hydra.engines.torch.optimizer import build_optimizer
from cosmos_hydra.engines.torch.saving import Saver
from cosmos_hydra.models.text import TextEmbedding, load_text_encoder
from cosmos_hydra.models.tokenizer import load_tokenizer
from cosmos_hydra.models.toy_tokenizer import ToyTokenizer
from cosmos_hydra.models.transformer import build_transformer
from cosmos_hydra.reading import SEAL, sealed
from cosmos_hydra.weights import diffusers
from cosmos_hydra.weights.load import load_weights
from cosmos_hydra.weights.locate import locate
from cosmos_hydra.weights.open import check_architecture
from cosmos_hydra.weights.torch_metadata import read_metadata

CPU = torch.device("cpu")
NEMO_KEY = "module.decoder.layers.mlp.linear_fc1.weight"
SMALL_MODEL = ("model.num_heads=2", "model.head_dim=24", "model.adaln_lora_dim=8")
STEP = "run/checkpoints/step_000004"
SAMPLES = (("samples", SampleFormat.safetensors), ("nemo", SampleFormat.nemo))


@dataclass(frozen=True)
class Place:
    """A file, a pattern below the folder that `write_all` fills, and what reads it."""

    file: str
    read: Callable[[Path], object]

    @property
    def folder(self) -> str:
        return self.file.partition("/")[0]

    def path(self, root: Path) -> Path:
        return next(root.glob(self.file), root / self.file)


def pairs(kinds: Iterable[str], names: Iterable[str]) -> list[Any]:
    """Return every kind in every place; all but one round, which holds each once, is slow."""
    all_kinds, all_names = list(kinds), list(names)
    rounds = range(max(len(all_kinds), len(all_names)))
    chosen = {(all_kinds[n % len(all_kinds)], all_names[n % len(all_names)]) for n in rounds}
    return [
        pytest.param(*pair, marks=[] if pair in chosen else pytest.mark.slow)
        for pair in itertools.product(all_kinds, all_names)
    ]


def sound_folder(base: Path) -> Path:
    """Return a folder with one of everything that is read, made once; do not write into it."""
    root = base / "sound"
    if not root.exists():
        write_all(root)
    return root


def write_all(root: Path) -> None:
    """Write samples in both formats, a run, foreign weights, encoders, a distributed checkpoint."""
    for name, sample_format in SAMPLES:
        write_samples(Layout(root / name / "data", sample_format))
    config = small_config(root, *SMALL_MODEL)
    transformer = initialised(config.model, 0)
    diffusers.save_transformer(transformer, config.model, root / "diffusers")
    weights = dict(transformer.state_dict())
    write_original(root / "original" / "model.pt", weights)
    write_zarr(root / "zarr", weights)
    write_torch_dist(root / "torch_dist", weights)
    for step in (2, 4):
        write_step(root / "run", step, transformer, config)
    blocks = torch.nn.functional.interpolate(torch.rand(2, 3, 2, 3, 4), size=(9, 32, 32))
    write_tiny_cosmos(root / "vae", blocks)
    write_tiny_t5(root / "t5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process only
        dcp.save({"weight": torch.zeros(2, 2), "lr": 0.1}, checkpoint_id=root / "dcp", no_dist=True)


def write_samples(layout: Layout) -> None:
    embedding_TD = torch.ones(16, 1024, dtype=torch.bfloat16)
    text = TextEmbedding(embedding_TD, torch.ones(16, dtype=torch.bool))
    writer, texts = SampleWriter(layout), Texts(layout, {"kind": "hash"})
    texts.write("a", text)
    for number in range(2):
        info = {"height": 48, "width": 64, "fps": 12.0, "content": None}
        writer.write(str(number), info, torch.zeros(16, 2, 6, 8), texts.path("a"))
    fitted = ToyTokenizer.fit([torch.rand(3, 9, 32, 32)], seed=0)
    fitted.save(layout.beside("tokenizer.safetensors"))
    entries = [
        {"id": str(number), "split": "train", "video": "a.mp4", "start_frame": 0, "caption": "a"}
        for number in range(2)
    ]
    manifest = {
        "format_version": 1,
        "content_hash": "0",
        "tokenizer": fitted.identity,
        "text_encoder": {"kind": "hash"},
        "samples": entries,
    }
    files.write_json(layout.manifest, manifest)


def write_step(run: Path, step: int, transformer: torch.nn.Module, config: Any) -> None:
    optimizer = build_optimizer(transformer, config.optim, config.seed, part=0)
    state.make_moments(transformer, optimizer, config.optim.state)
    facts = {
        "config": schema.to_dict(config),
        "data": "0",
        "tokenizer": None,
        "text_encoder": None,
        "captions": ["a"],
        "fps": 12.0,
        "base": None,
    }
    fitted = run.parent / "samples/data/tokenizer.safetensors"
    saver = Saver(run, join(config, CPU), config.model, 0, fitted)
    saver.save(step, state.table_of(transformer, optimizer), facts)
    saver.wait()
    saver.close()


def reseal(folder: Path) -> None:
    """Make the manifest of a checkpoint say that its files are as they should be."""
    manifest = checkpoint.read_json(folder / runs.MANIFEST)
    hashes = {
        name: files.sha256_of(folder / name) if (folder / name).is_file() else digest
        for name, digest in manifest["files"].items()
    }
    del manifest[SEAL]  # of the manifest as it was
    (folder / runs.MANIFEST).write_bytes(sealed({**manifest, "files": hashes}))


def _sample(folder: str) -> Callable[[Path], object]:
    return lambda root: open_store(str(root / folder / "data")).load("0")


def _resume(root: Path) -> None:
    """Do what a resumed run does with its newest checkpoint, taken as it is."""
    reseal(root / STEP)
    found = checkpoint.open_checkpoint(root / STEP)
    config = small_config(root, *SMALL_MODEL)
    transformer = build_transformer(config.model)
    optimizer = build_optimizer(transformer, config.optim, config.seed, part=0)
    state.make_moments(transformer, optimizer, config.optim.state)
    state.read_into(state.table_of(transformer, optimizer), found.state, None)
    ToyTokenizer.load(found.tokenizer)


def _foreign(folder: str) -> Callable[[Path], object]:
    return lambda root: _load(root, folder)


def _load(root: Path, folder: str) -> None:
    config = small_config(root, *SMALL_MODEL)
    found = locate(str(root / folder), "resume.path")
    check_architecture(found, config.model, "resume.path")
    load_weights(build_transformer(config.model), found)


_weights = _foreign("diffusers")


def _t5(root: Path) -> None:
    text = TextEncoderConfig(TextEncoderKind.t5, str(root / "t5"))
    model = ModelConfig(text_tokens=12, text_dim=T5_DIM, text_encoder=text)
    load_text_encoder(model, CPU).encode("a robot")


def _vae(root: Path) -> None:
    tokenizer = TokenizerConfig(TokenizerKind.cosmos, str(root / "vae"))
    loaded = load_tokenizer(ModelConfig(tokenizer=tokenizer), Path(), CPU)
    loaded.encode(torch.zeros(1, 3, 1, 32, 32))


PLACES = {
    "latent": Place("samples/data/0.video_latent.safetensors", _sample("samples")),
    "text": Place("samples/data/text/*.safetensors", _sample("samples")),
    "info": Place("samples/data/0.info.json", _sample("samples")),
    "sample manifest": Place("samples/data/manifest.json", _sample("samples")),
    "fitted tokenizer": Place(
        "samples/data/tokenizer.safetensors",
        lambda root: ToyTokenizer.load(root / "samples/data/tokenizer.safetensors"),
    ),
    "latent .pth": Place("nemo/data/0.video_latent.pth", _sample("nemo")),
    "text .pth": Place("nemo/data/0.t5_text_embeddings.pth", _sample("nemo")),
    "info of .pth": Place("nemo/data/0.info.json", _sample("nemo")),
    "manifest of .pth": Place("nemo/data.manifest.json", _sample("nemo")),
    "checkpoint manifest": Place(
        f"{STEP}/manifest.json", lambda root: checkpoint.open_checkpoint(root / STEP)
    ),
    "checkpoint state": Place(f"{STEP}/state/__0_0.distcp", _resume),
    "checkpoint metadata": Place(f"{STEP}/state/.metadata", _resume),
    "checkpoint tokenizer": Place(f"{STEP}/tokenizer.safetensors", _resume),
    "weights": Place(f"diffusers/{diffusers.WEIGHTS}", _weights),
    "weights config": Place("diffusers/config.json", _weights),
    "weights index": Place(f"diffusers/{diffusers.WEIGHTS}.index.json", _weights),
    "t5 config": Place("t5/config.json", _t5),
    "t5 weights": Place("t5/model.safetensors", _t5),
    "t5 index": Place("t5/model.safetensors.index.json", _t5),
    "t5 tokenizer": Place("t5/tokenizer.json", _t5),
    "vae config": Place("vae/config.json", _vae),
    "vae weights": Place(f"vae/{diffusers.WEIGHTS}", _vae),
    "vae index": Place(f"vae/{diffusers.WEIGHTS}.index.json", _vae),
    "original": Place("original/model.pt", _foreign("original")),
    "zarr header": Place(f"zarr/{NEMO_KEY}/.zarray", _foreign("zarr")),
    "zarr chunk": Place(f"zarr/{NEMO_KEY}/1.0.0", _foreign("zarr")),
    "torch_dist metadata": Place("torch_dist/.metadata", _foreign("torch_dist")),
    "torch_dist tensors": Place("torch_dist/__0_0.distcp", _foreign("torch_dist")),
    "dcp metadata": Place("dcp/.metadata", lambda root: read_metadata(root / "dcp")),
}
