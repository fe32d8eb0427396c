"""Which rank does what: a device mesh with the axes dp_replicate, dp_shard, cp and tp.

Ranks of one dp_replicate x dp_shard place work on the same samples. cp (context parallel) shares
the tokens of a sample, tp (tensor parallel) the heads and the MLP; tp is innermost, so that its
ranks are neighbours.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from cosmos_hydra.config import Config
from cosmos_hydra.engines.torch.degrees import AXES, Degrees, check_degrees, degrees_of
from cosmos_hydra.errors import ConfigError, CosmosError
from cosmos_hydra.place import local_rank, world_size

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among all; without torchrun or srun the only one, and `mesh` is None."""

    rank: int
    degrees: Degrees
    device: torch.device
    # weights lie on this one: dp_replicate, dp_shard_cp (both flattened), tp
    mesh: DeviceMesh | None = None
    # ranks with other samples; with other tokens of the same samples; the latter with tp too
    dp: DeviceMesh | None = None
    cp: DeviceMesh | None = None
    cp_tp: DeviceMesh | None = None
    # all ranks, over gloo, for the thread that writes checkpoints
    cpu_group: dist.ProcessGroup | None = None

    def wait(self) -> None:
        """Block until every rank is here."""
        if self.cpu_group is not None:
            dist.barrier(self.cpu_group)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank; called by every rank."""
        if self.mesh is None:
            return flag
        count = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(count)
        return bool(count.item())

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, by rank; called by every rank."""
        if self.mesh is None:
            return [value]
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, value, group=self.cpu_group)
        return found

    def sum_over_dp(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks that work on different samples, on the CPU."""
        if self.dp is None:
            return values
        total = values.to(self.device)
        dist.all_reduce(total, group=self.dp.get_group())
        return total.cpu()

    def decide(self, action: Callable[[], T]) -> T:
        """Return what `action` returns on rank 0, the only one that runs it.

        Raises: on every rank the CosmosError that it raises there.
        """
        if self.mesh is None:
            return action()
        found: list[Any] = [None, None]
        if self.is_first:
            try:
                found[0] = action()
            except CosmosError as error:
                found[1] = error
        dist.broadcast_object_list(found, group=self.cpu_group)
        result, failure = found
        if failure is not None:
            failure.is_everywhere = True
            raise failure
        return cast(T, result)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def __str__(self) -> str:
        """Return where this runs, for messages."""
        if self.mesh is None:
            return str(self.device)
        axes = ", ".join(f"{axis} {n}" for axis, n in vars(self.degrees).items() if n > 1)
        return f"{self.degrees.world_size} {self.device.type} ranks ({axes})"

    @cached_property
    def dp_rank(self) -> int:
        """Return the place among the ranks that work on different samples."""
        return 0 if self.dp is None else int(self.dp.get_local_rank())

    @cached_property
    def shard(self) -> int:
        """Return which part of the sharded parameters this rank holds."""
        return 0 if self.mesh is None else int(self.mesh["dp_shard_cp"].get_local_rank())


def order_kernels(degrees: Degrees) -> None:
    """Have kernels start in the order of the calls, before CUDA does, where tp alone talks.

    FSDP's transfers would wait behind others.
    """
    if degrees.tp > 1 and degrees.dp_shard * degrees.cp == 1:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def join(config: Config, device: torch.device) -> Ranks:
    """Return this process's place; called by every rank, and waits for all of them.

    Raises: ConfigError when the degrees do not fit the job, the model or the batch.
    """
    degrees = degrees_of(config.parallel, world_size())
    problems = check_degrees(config, degrees)
    if problems:
        raise ConfigError(*problems)
    if world_size() == 1:
        return Ranks(0, degrees, device)
    if device.type == "cuda":
        order_kernels(degrees)
        device = torch.device("cuda", local_rank())
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # gloo beside NCCL carries checkpoints and flags while the GPU computes
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=1))
    sizes = tuple(getattr(degrees, axis) for axis in AXES)
    axes = init_device_mesh(device.type, sizes, mesh_dim_names=AXES)
    mesh = init_device_mesh(
        device.type,
        (degrees.dp_replicate, degrees.dp_shard * degrees.cp, degrees.tp),
        mesh_dim_names=("dp_replicate", "dp_shard_cp", "tp"),
    )
    return Ranks(
        rank=dist.get_rank(),
        degrees=degrees,
        device=device,
        mesh=mesh,
        dp=axes["dp_replicate", "dp_shard"]._flatten("dp"),
        cp=axes["cp"],
        cp_tp=axes["cp", "tp"]._flatten("cp_tp"),
        cpu_group=dist.new_group(backend="gloo"),
    )
