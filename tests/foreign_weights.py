"""Small checkpoints in foreign formats, made here by other means than the program has.

Names and joints are spelled out again from the published layouts; zarr is written and read by
TensorStore, the distributed format by torch with a chunk a layer, as Megatron does.
"""

import io
import json
import pickle
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)

from cosmos_hydra.config import ModelConfig
from cosmos_hydra.models.transformer import build_transformer

Weights = dict[str, torch.Tensor]
MODEL = (
    "model.num_layers=2",
    "model.num_heads=8",
    "model.head_dim=24",
    "model.adaln_lora_dim=8",
    "model.text_dim=32",
    "model.max_size=[4,16,16]",
)
HEADS, LAYERS = 8, 2


def random_weights(model: ModelConfig, seed: int = 0) -> Weights:
    """Return weights in diffusers' names: bfloat16, the position tables float32, none zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        parameters = dict(build_transformer(model).named_parameters())
    weights = {name: torch.randn(p.shape, generator=generator) for name, p in parameters.items()}
    return {n: t if "pos_emb" in n else t.bfloat16() for n, t in weights.items()}


def layers_of(weights: Weights) -> int:
    return sum(name.endswith(".attn1.norm_q.weight") for name in weights)


def original_weights(weights: Weights) -> Weights:
    """Return weights under the names of the original code, without its prefix."""
    found = {
        "x_embedder.proj.1.weight": weights["patch_embed.proj.weight"],
        "t_embedder.1.linear_1.weight": weights["time_embed.t_embedder.linear_1.weight"],
        "t_embedder.1.linear_2.weight": weights["time_embed.t_embedder.linear_2.weight"],
        "affline_norm.weight": weights["time_embed.norm.weight"],
        "final_layer.linear.weight": weights["proj_out.weight"],
        "final_layer.adaLN_modulation.1.weight": weights["norm_out.linear_1.weight"],
        "final_layer.adaLN_modulation.2.weight": weights["norm_out.linear_2.weight"],
    }
    for axis in "thw":
        name = f"pos_emb_{axis}"
        found[f"extra_pos_embedder.{name}"] = weights[f"learnable_pos_embed.{name}"]
    for number in range(layers_of(weights)):
        theirs, ours = f"blocks.block{number}.blocks", f"transformer_blocks.{number}"
        for index, attention in enumerate(("attn1", "attn2")):
            for letter in "qk":
                projection = f"{theirs}.{index}.block.attn.to_{letter}"
                found[f"{projection}.0.weight"] = weights[f"{ours}.{attention}.to_{letter}.weight"]
                norm = f"{ours}.{attention}.norm_{letter}.weight"
                found[f"{projection}.1.weight"] = weights[norm]
            value, out = (
                f"{theirs}.{index}.block.attn.to_{name}.0.weight" for name in ("v", "out")
            )
            found[value] = weights[f"{ours}.{attention}.to_v.weight"]
            found[out] = weights[f"{ours}.{attention}.to_out.0.weight"]
        found[f"{theirs}.2.block.layer1.weight"] = weights[f"{ours}.ff.net.0.proj.weight"]
        found[f"{theirs}.2.block.layer2.weight"] = weights[f"{ours}.ff.net.2.weight"]
        for index in (0, 1, 2):
            for linear in (1, 2):
                name = f"{theirs}.{index}.adaLN_modulation.{linear}.weight"
                found[name] = weights[f"{ours}.norm{index + 1}.linear_{linear}.weight"]
    return found


def alternating(heads: int, *projections: torch.Tensor) -> torch.Tensor:
    """Return the rows of each projection in turn, a head after the other."""
    width = projections[0].shape[0] // heads
    rows = [
        projection[head * width : (head + 1) * width]
        for head in range(heads)
        for projection in projections
    ]
    return torch.cat(rows)


def nemo_weights(weights: Weights) -> Weights:
    """Return weights as NeMo keeps them, the layers stacked."""
    original = original_weights(weights)
    block = "transformer_blocks.0.attn1"
    heads = len(weights[f"{block}.to_q.weight"]) // len(weights[f"{block}.norm_q.weight"])
    found = {f"module.{name}": tensor for name, tensor in original.items() if "blocks." not in name}
    stacks: dict[str, list[torch.Tensor]] = {}
    for number in range(layers_of(weights)):
        part = [f"blocks.block{number}.blocks.{index}" for index in (0, 1, 2)]
        own, cross = (
            {
                name: original[f"{part[index]}.block.attn.to_{name}.{slot}.weight"]
                for name, slot in (("q", 0), ("k", 0), ("v", 0), ("out", 0))
            }
            for index in (0, 1)
        )
        layer = {
            "full_self_attention.linear_qkv": alternating(heads, own["q"], own["k"], own["v"]),
            "full_self_attention.linear_proj": own["out"],
            "cross_attention.linear_q": cross["q"],
            "cross_attention.linear_kv": alternating(heads, cross["k"], cross["v"]),
            "cross_attention.linear_proj": cross["out"],
            "mlp.linear_fc1": original[f"{part[2]}.block.layer1.weight"],
            "mlp.linear_fc2": original[f"{part[2]}.block.layer2.weight"],
        }
        for index, attention in enumerate(("full_self_attention", "cross_attention")):
            for letter in "qk":
                norm = original[f"{part[index]}.block.attn.to_{letter}.1.weight"]
                layer[f"{attention}.{letter}_layernorm"] = norm
        down = [original[f"{one}.adaLN_modulation.1.weight"] for one in part]
        up = [original[f"{one}.adaLN_modulation.2.weight"] for one in part]
        rows, rank = up[0].shape
        dense = torch.zeros(3 * rows, 3 * rank, dtype=up[0].dtype)
        for index in (0, 1, 2):
            dense[rows * index : rows * (index + 1), rank * index : rank * (index + 1)] = up[index]
        layer |= {"adaLN.adaLN_modulation.1": torch.cat(down), "adaLN.adaLN_modulation.2": dense}
        for name, tensor in layer.items():
            stacks.setdefault(f"module.decoder.layers.{name}.weight", []).append(tensor)
    return found | {name: torch.stack(tensors) for name, tensors in stacks.items()}


def write_original(path: Path, weights: Weights, nested: str | None = None) -> None:
    """Write a file of the original code, with what else lies in one."""
    table: dict[str, Any] = {f"net.{name}": t for name, t in original_weights(weights).items()}
    table["net.pos_embedder.seq"] = torch.arange(8.0)
    table["net.affline_norm._extra_state"] = io.BytesIO(b"notes")
    table["logvar.1.weight"] = torch.ones(1, 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({nested: table, "step": 3} if nested else table, path)


TP_AXIS = {"linear_qkv": 1, "linear_q": 1, "linear_kv": 1, "linear_fc1": 1}
TP_AXIS |= {"linear_proj": 2, "linear_fc2": 2}


def write_zarr(folder: Path, weights: Weights, tp: int = 1) -> None:
    """Write the folder of a NeMo checkpoint with TensorStore, chunked as `tp` ranks save it."""
    for key, tensor in nemo_weights(weights).items():
        chunks = list(tensor.shape)
        axis = TP_AXIS.get(key.split(".")[-2]) if ".layers." in key else None
        if ".layers." in key:
            chunks[0] = 1
        if axis is not None:
            chunks[axis] //= tp
        write_array(folder / key, tensor, chunks)
    write_array(folder / "module.logvar.0.freqs", torch.ones(8), [8])
    (folder / "module.decoder.layers.mlp.linear_fc1._extra_state").mkdir()
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "zarr"}))
    torch.save({"iteration": 3}, folder / "common.pt")


def write_array(folder: Path, tensor: torch.Tensor, chunks: list[int]) -> None:
    names = {torch.bfloat16: "bfloat16", torch.float32: "<f4", torch.float16: "<f2"}
    metadata = {
        "shape": list(tensor.shape),
        "chunks": chunks,
        "dtype": names[tensor.dtype],
        "compressor": None,
        "fill_value": None,
    }
    store = tensorstore.open(
        {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": str(folder)},
            "metadata": metadata,
        },
        create=True,
    ).result()
    store[...] = numpy_of(tensor, store.dtype.numpy_dtype)


def numpy_of(tensor: torch.Tensor, kind: Any) -> Any:
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(kind)
    return tensor.numpy()


def read_zarr(folder: Path) -> Weights:
    """Return every array of a folder, read with TensorStore."""
    found = {}
    for header in sorted(folder.glob("*/.zarray")):
        where = {"driver": "file", "path": str(header.parent)}
        array = tensorstore.open({"driver": "zarr", "kvstore": where}).result().read().result()
        is_bfloat16 = array.dtype.name == "bfloat16"
        tensor = torch.from_numpy(np.array(array.view(np.int16) if is_bfloat16 else array))
        found[header.parent.name] = tensor.view(torch.bfloat16) if is_bfloat16 else tensor
    return found


def write_torch_dist(folder: Path, weights: Weights) -> None:
    """Write a distributed checkpoint: of stacked arrays, each layer is a chunk of its own."""
    table: dict[str, Any] = {}
    for key, tensor in nemo_weights(weights).items():
        table[key] = in_layers(tensor) if ".layers." in key else tensor
    table["module.affline_norm._extra_state/shard_0_1"] = io.BytesIO(b"notes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process only
        dcp.save(table, checkpoint_id=folder, no_dist=True)
    torch.save({"iteration": 3}, folder / "common.pt")
    as_megatron_writes_it(folder / ".metadata")


def as_megatron_writes_it(path: Path) -> None:
    """Have a `.metadata` name Megatron-core's classes, which are not installed, and its plans."""
    before = pickle.loads(path.read_bytes())
    module = types.ModuleType("megatron.core.dist_checkpointing.strategies.torch")
    for name, base in (("MCoreMetadata", Metadata), ("MCoreSavePlan", SavePlan)):
        setattr(module, name, type(name, (base,), {"__module__": module.__name__}))
    after = module.MCoreMetadata(**vars(before))
    after.mcore_data = {key: {"nd_reformulated_orig_global_shape": (2, 3)} for key in ("a", "b")}
    key = next(iter(before.state_dict_metadata))
    items = in_layers(torch.zeros(2, 3)).__create_write_items__(key, torch.zeros(2, 3))
    after.all_local_plans = [module.MCoreSavePlan(items)]
    names = [module.__name__.rsplit(".", count)[0] for count in range(5)]
    sys.modules |= dict.fromkeys(names, module)
    try:
        path.write_bytes(pickle.dumps(after))
    finally:
        for name in names:
            del sys.modules[name]


def in_layers(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that torch saves in a chunk for each index of its first axis."""
    tensor = tensor.clone()
    size = torch.Size((1, *tensor.shape[1:]))
    offsets = [torch.Size((n, *(0 for _ in size[1:]))) for n in range(tensor.shape[0])]

    def items(fqn: str, whole: torch.Tensor) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(fqn, offset),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(offset, size),
                    properties=TensorProperties.create_from_tensor(whole),
                    size=whole.size(),
                ),
            )
            for offset in offsets
        ]

    tensor.__create_write_items__ = items  # type: ignore[attr-defined]
    tensor.__get_tensor_shard__ = lambda index: tensor[index.offset[0]][None]  # type: ignore[attr-defined]
    return tensor
