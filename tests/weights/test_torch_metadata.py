"""Folders of torch.distributed.checkpoint: what real ones hold, read without unpickling them."""

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from conftest import Command
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from cosmos_hydra.errors import ConfigError, StageError
from cosmos_hydra.weights.locate import locate
from cosmos_hydra.weights.torch_metadata import read_metadata


@contextmanager
def one_process() -> Iterator[None]:
    """Make a process group of this process alone."""
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def stepped(model: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer that has taken a step."""
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    return optimizer


def save(state: dict[str, Any], folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one process only
        dcp.save(state, checkpoint_id=folder, no_dist=not dist.is_initialized())


def test_names_shapes_dtypes_and_files_of_plain_tensors(tmp_path: Path) -> None:
    state = {
        "a": torch.zeros(2, 3, dtype=torch.bfloat16),
        "nested": {"b": torch.zeros((), dtype=torch.int64), "rate": 0.1, "text": "x"},
        "last": torch.zeros(1, 2, 3, 4).to(memory_format=torch.channels_last),
    }
    save(state, tmp_path)
    found = read_metadata(tmp_path)
    (file,) = (path.name for path in tmp_path.glob("*.distcp"))
    tensors = {name: (t.shape, t.dtype, t.files) for name, t in found.tensors.items()}
    assert tensors == {
        "a": ((2, 3), "bfloat16", (file,)),
        "nested.b": ((), "int64", (file,)),
        "last": ((1, 2, 3, 4), "float32", (file,)),
    }
    assert set(found.objects) == {"nested.rate", "nested.text"}


def test_sharded_weights_and_optimizer_state(tmp_path: Path) -> None:
    with one_process():
        mesh = init_device_mesh("cpu", (1,))
        model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
        fully_shard(model, mesh=mesh)
        weights, optimizer = get_state_dict(model, stepped(model))
        column = distribute_tensor(torch.zeros(4, 6), mesh, [Shard(1)])
        save({"model": weights, "optim": optimizer, "column": column}, tmp_path)
    tensors = read_metadata(tmp_path).tensors
    assert {name: tensor.shape for name, tensor in tensors.items() if "model" in name} == {
        "model.0.weight": (16, 8),
        "model.0.bias": (16,),
        "model.1.weight": (4, 16),
        "model.1.bias": (4,),
    }
    assert tensors["optim.state.0.weight.exp_avg"].shape == (16, 8)
    assert tensors["column"].shape == (4, 6)
    assert {tensor.dtype for tensor in tensors.values()} == {"float32"}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_that_names_classes_is_read(protocol: int, tmp_path: Path) -> None:
    save({"x": torch.zeros(2), "y": [1, 2.5, "z"]}, tmp_path)
    before = read_metadata(tmp_path)
    file = tmp_path / ".metadata"
    with file.open("rb") as opened:
        metadata = pickle.load(opened)
    file.write_bytes(pickle.dumps(metadata, protocol))
    assert read_metadata(tmp_path) == before


def refusal(content: bytes, folder: Path) -> str:
    (folder / ".metadata").write_bytes(content)
    with pytest.raises(StageError) as caught:
        read_metadata(folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\x80\x02cos\nsystem\n.", "os.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "builtins.eval"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (b"\x80\x04\x8c\x05torch\x8c\x0dSize.__init__\x93.", "torch.Size.__init__"),
        (b"\x80\x02ctorch.nn\nModule\n.", "torch.nn.Module"),
        (b"\x80\x02c\x1b[31m\nx\n.", "\\x1b[31m.x"),
    ],
)
def test_a_name_that_is_not_allowed_is_refused_and_said(
    content: bytes, named: str, tmp_path: Path
) -> None:
    message = refusal(content, tmp_path)
    assert message == (
        f"{tmp_path / '.metadata'} refers to {named}, which no checkpoint needs "
        f"and which could run code; nothing was run, do not load this folder elsewhere"
    )


DAMAGES = {
    "nothing": b"",
    "text": b"no pickle",
    "cut short": b"\x80\x04\x95\xff\x00\x00\x00\x00\x00\x00\x00",
    "a number": b"\x80\x02K\x01.",
    "an instance of the old kind": b"(ios\nsystem\n.",
    "a foreign object": b"\x80\x02Pos.system\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "a memo without end": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "a text without end": b"\x80\x04X\xff\xff\xff\xff.",
    "bytes without end": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "a call of a text": b"\x80\x02X\x01\x00\x00\x00x)R.",
    "a change of a text": b"\x80\x02X\x01\x00\x00\x00x}b.",
    "endless tuples as a key": b"\x80\x02})" + b"\x85" * 400_000 + b"Ns.",
    "endless tuples": b"\x80\x02)" + b"\x85" * 100_000 + b".",
    "numbers as keys": b"\x80\x02}K\x01Ns.",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_pickle_that_makes_no_sense_is_one_line(damage: str, tmp_path: Path) -> None:
    message = refusal(DAMAGES[damage], tmp_path)
    assert message.startswith(f"{tmp_path / '.metadata'} is damaged (")
    assert message.isprintable()


def test_any_changed_byte_gives_what_was_there_or_a_line(tmp_path: Path) -> None:
    save({"x": torch.zeros(2), "rate": 0.1}, tmp_path)
    whole = (tmp_path / ".metadata").read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randperm(len(whole), generator=generator)[:100].tolist():
        for change in (0x01, 0x20, 0xFF):
            content = bytearray(whole)
            content[place] ^= change
            (tmp_path / ".metadata").write_bytes(content)
            with suppress(StageError):
                read_metadata(tmp_path)


def test_a_file_larger_than_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / ".metadata").open("wb") as file:
        file.truncate((256 << 20) + 1)
    with pytest.raises(StageError, match=r"is damaged \(larger than 256 MB\)$"):
        read_metadata(tmp_path)


@pytest.mark.parametrize("below", ["", "weights"])
@pytest.mark.parametrize("key", ["checkpoint", "resume.path"])
def test_a_distributed_checkpoint_is_refused_with_what_it_is(
    key: str, below: str, tmp_path: Path
) -> None:
    save({"a": torch.zeros(2), "b": torch.zeros(2), "rate": 0.1}, tmp_path / below)
    with pytest.raises(ConfigError) as caught:
        locate(str(tmp_path), key)
    assert str(caught.value) == (
        f"{key}={tmp_path} is a torch distributed checkpoint with 2 tensors, but none of NeMo's"
    )


def test_the_command_line_says_what_a_distributed_checkpoint_is(
    command: Command, tmp_path: Path
) -> None:
    save({"a": torch.zeros(2)}, tmp_path / "old")
    outcome = command("stage=generate", "checkpoint=old", cwd=tmp_path)
    assert (outcome.code, outcome.stderr.count("\n")) == (2, 1)
    assert "checkpoint=old is a torch distributed checkpoint with 1 tensors, but" in outcome.stderr
