"""Weights and optimizer state as one flat table of tensors, and that table on disk.

On disk it is a torch.distributed.checkpoint (DCP) folder: every rank writes what it holds, and
ranks of another mesh, or one process alone, read what they need. Keys: `weight.NAME`, and
`exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME` of AdamW. With adapters it is of these alone.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import CheckpointException, LoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from cosmos_hydra import files
from cosmos_hydra.config import StatePrecision
from cosmos_hydra.engines.torch.parts import local, with_local
from cosmos_hydra.engines.torch.small_moments import (
    MOMENTS,
    as_float,
    empty_moment,
    is_quantised,
    requantise,
)
from cosmos_hydra.errors import StageError
from cosmos_hydra.models.lora import named_adapters, named_weights
from cosmos_hydra.reading import listed, shown
from cosmos_hydra.weights.source import WholeTensor
from cosmos_hydra.weights.torch_metadata import StoredFolder
from cosmos_hydra.weights.torch_reader import Reader

Table = dict[str, torch.Tensor]
WEIGHT = "weight"
KINDS = (WEIGHT, *MOMENTS, "step")


def table_of(module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Table:
    """Return the live tensors of a model and its optimizer by key; nothing is copied."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()  # after an evaluation the root's parameters are still gathered
    table = {}
    for name, parameter in [*named_adapters(module)] or named_weights(module):
        table[f"{WEIGHT}.{name}"] = parameter.detach()
        for kind, tensor in (optimizer.state.get(parameter, {}) if optimizer else {}).items():
            table[f"{kind}.{name}"] = tensor
    return table


def write(table: Table, folder: Path, group: dist.ProcessGroup | None) -> None:
    """Write a table; called by every rank of `group`, a gloo group, or by one process alone.

    Raises: on every rank what went wrong on the first that failed.
    """
    writer = _Writer(folder, single_file_per_rank=True, sync_files=True, thread_count=1)
    try:
        with _quiet():
            dcp.save(table, storage_writer=writer, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        raise _cause(error) from error


class _Writer(FileSystemWriter):
    """Write the same bytes for the same table, wherever and whenever."""

    def storage_meta(self) -> None:
        """Leave out the folder's place and a random name."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        """Write this rank's part; the disk's error, which torch's zip hides, comes out."""
        with files.naming(Path(self.path)):
            return super().write_data(plan, planner)


def _cause(error: CheckpointException) -> BaseException:
    """Return what it wraps; it is no Exception itself, so that nobody would catch it."""
    cause, _ = next(iter(error.failures.values()))
    return cause


def _reason(error: CheckpointException) -> str:
    cause = _cause(error)
    return shown(str(cause) or type(cause).__name__)


def read_into(table: Table, folder: Path, group: dist.ProcessGroup | None) -> None:
    """Fill tensors, or this rank's parts of them, from a folder of any mesh.

    Raises: StageError listing every missing, unexpected and misshapen key, or when the folder's
    `.metadata` could run code.
    """
    reader = Reader(folder)
    check_fits(table, reader)
    quantised = {name: tensor for name, tensor in table.items() if is_quantised(tensor)}
    exact = {name: with_local(tensor, as_float(tensor)) for name, tensor in quantised.items()}
    fetch({**table, **exact}, reader, group)
    for name, tensor in quantised.items():
        requantise(local(exact[name]), local(tensor))


def check_fits(table: Table, reader: Reader) -> None:
    """Raise StageError unless a folder fills a table, and its `.metadata` could not run code."""
    problems = _misfits(table, reader.stored)
    if problems:
        raise StageError(
            f"checkpoint {reader.folder.parent} does not fit the model: {listed(problems)}"
        )


def fetch(
    table: Table,
    reader: Reader,
    group: dist.ProcessGroup | None,
    planner: LoadPlanner | None = None,
) -> None:
    """Fill tensors from a folder.

    Raises: StageError when it cannot be read.
    """
    try:
        with _quiet():
            dcp.load(
                table,
                storage_reader=reader,
                planner=planner,
                process_group=group,
                no_dist=group is None,
            )
    except CheckpointException as error:
        folder = reader.folder.parent
        raise StageError(f"checkpoint {folder} cannot be read ({_reason(error)})") from error


def _misfits(table: Table, stored: StoredFolder) -> list[str]:
    """Return a line for all that keeps a folder from filling a table; weights may come alone."""
    left_out = {kind for kind in KINDS if not any(name.startswith(f"{kind}.") for name in table)}
    found = {*stored.tensors, *stored.objects}
    problems = [
        f"unexpected {shown(name)}"
        for name in sorted(found - table.keys())
        if name.partition(".")[0] not in left_out
    ]
    for name, tensor in table.items():
        there = stored.tensors.get(name)
        if there is None:
            problems.append(f"missing {name}")
        elif there.shape != tuple(tensor.shape):
            problems.append(f"{name} is {list(there.shape)}, not {list(tensor.shape)}")
        elif not getattr(torch, there.dtype).is_floating_point:
            problems.append(f"{name} is {there.dtype}, not a floating type")
    return problems


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warning that one process alone does what it was asked to do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def make_moments(
    module: nn.Module, optimizer: torch.optim.Optimizer, precision: StatePrecision
) -> None:
    """Give AdamW its state before the first step, so that there is something to read into."""
    for parameter in _trained(module.parameters()):
        state = optimizer.state[parameter]
        for kind in MOMENTS:
            state[kind] = empty_moment(parameter, kind, precision)
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)


def _trained(parameters: Iterable[nn.Parameter]) -> Iterable[nn.Parameter]:
    return (parameter for parameter in parameters if parameter.requires_grad)


def fill_shards(module: nn.Module, whole: Callable[[str, torch.Size], WholeTensor]) -> None:
    """Fill the weights, or this rank's parts of them, from tensors that are read in slices.

    `whole` returns what a parameter of a name and global shape is made of; nothing larger than one
    parameter is in memory at a time, and of a file only this rank's part.
    """
    for name, parameter in named_weights(module):
        fill_part(parameter, whole(name, parameter.shape))


@torch.no_grad()
def fill_part(parameter: nn.Parameter, source: WholeTensor) -> None:
    """Fill a parameter, or this rank's part of it, from what can be sliced like the whole."""
    local(parameter).copy_(source[slices_of(parameter)])


def slices_of(parameter: torch.Tensor) -> tuple[slice, ...]:
    """Return where in the whole tensor this rank's part lies."""
    if not isinstance(parameter, DTensor):
        return tuple(slice(0, length) for length in parameter.shape)
    shape, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    return tuple(slice(o, o + length) for o, length in zip(offset, shape, strict=True))
