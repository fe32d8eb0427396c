"""T5's encoder out of pytorch_model.bin, the only form in which google-t5/t5-11b has it.

What becomes of it is a folder in transformers layout: bfloat16 safetensors of the encoder alone,
config.json and the tokenizer. Done once; the folder appears when it is whole.
"""

import json
import logging
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from cosmos_hydra import files
from cosmos_hydra.errors import StageError
from cosmos_hydra.free_memory import host_free_bytes
from cosmos_hydra.hub.sources import T5_NAMES
from cosmos_hydra.pth import plain, read_table
from cosmos_hydra.reading import shown

BIN = "pytorch_model.bin"
SHARED, ENCODER = "shared.weight", "encoder."
TIED = "encoder.embed_tokens.weight"  # the same as SHARED
SHARD_BYTES = 4 << 30
logger = logging.getLogger(__name__)


def convert(snapshot: Path, out: Path) -> None:
    """Write the encoder that a snapshot holds as safetensors into the folder `out`.

    Raises: StageError when the file is no T5, or main memory too small for one of the old kind.
    """
    logger.info(f"converting {BIN} into {out}")
    tensors = _load(snapshot / BIN)
    names = sorted(name for name in tensors if name == SHARED or name.startswith(ENCODER))
    names = [name for name in names if name != TIED]
    if SHARED not in names or len(names) < 2:
        raise StageError(f"{snapshot / BIN} holds no encoder of T5; choose another repository")
    with files.naming(out), files.new_folder(out) as folder:
        for name in ("config.json", *T5_NAMES):
            if (snapshot / name).is_file():
                shutil.copyfile(snapshot / name, folder / name)
        shards = list(_shards(tensors, names))
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            content = {name: tensors[name].to(torch.bfloat16).contiguous() for name in shard}
            save_file(content, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _load(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the file: on disk still, or in memory for the format before 1.6."""
    is_archive = zipfile.is_zipfile(path)
    size_bytes = path.stat().st_size
    if not is_archive and host_free_bytes() < size_bytes:
        raise StageError(
            f"{path} must be read into memory once, {size_bytes / 1e9:.1f} GB, of which "
            f"{host_free_bytes() / 1e9:.1f} are free; use a machine with more, or the text encoder "
            f"of the model's own repository"
        )
    try:
        table = read_table(path, is_archive)
        tensors = {name: plain(tensor) for name, tensor in table.items() if _is_weight(tensor)}
    except (OSError, ValueError) as error:
        raise StageError(f"{path} cannot be read ({shown(error)})") from error
    if len(tensors) < len(table):
        raise StageError(f"{path} holds more than tensors; choose another repository")
    return tensors


def _is_weight(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _shards(tensors: dict[str, torch.Tensor], names: list[str]) -> Iterator[list[str]]:
    """Yield the names of tensors that go into one file, which fits into memory."""
    shard: list[str] = []
    size_bytes = 0
    for name in names:
        added = tensors[name].numel() * torch.bfloat16.itemsize
        if shard and size_bytes + added > SHARD_BYTES:
            yield shard
            shard, size_bytes = [], 0
        shard.append(name)
        size_bytes += added
    yield shard
