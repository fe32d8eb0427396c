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

from cosmos_hydra.config import Config, ParallelConfig
from cosmos_hydra.errors import ConfigError, CosmosError
from cosmos_hydra.place import local_rank, world_size

T = TypeVar("T")
AXES = ("dp_replicate", "dp_shard", "cp", "tp")


@dataclass(frozen=True)
class Degrees:
    """Ranks along each axis of the mesh."""

    dp_replicate: int
    dp_shard: int
    cp: int
    tp: int

    @property
    def dp(self) -> int:
        """Return how many ranks work on different samples."""
        return self.dp_replicate * self.dp_shard


def degrees_of(parallel: ParallelConfig, world_size: int) -> Degrees:
    """Return the degrees with -1 replaced by what is left.

    Raises: ConfigError when they do not multiply to the number of ranks.
    """
    asked = {axis: getattr(parallel, axis) for axis in AXES}
    known = 1
    for degree in asked.values():
        known *= max(degree, 1)
    open_axes = [axis for axis, degree in asked.items() if degree == -1]
    if len(open_axes) == 1 and world_size % known == 0:
        asked[open_axes[0]] = world_size // known
        known = world_size
    if known != world_size or any(degree < 1 for degree in asked.values()):
        shown = " ".join(f"parallel.{axis}={getattr(parallel, axis)}" for axis in AXES)
        raise ConfigError(
            f"{shown} do not multiply to the {world_size} ranks of this job; "
            f"start {known} ranks, or set one of them to -1 (what is left)"
        )
    return Degrees(**asked)


def check_degrees(config: Config, degrees: Degrees) -> list[str]:
    """Return a line for every degree that the model or the batch cannot be divided by."""
    model, trainer = config.model, config.trainer
    problems = []
    if model.num_heads % degrees.tp:
        fitting = [n for n in range(1, model.num_heads + 1) if model.num_heads % n == 0]
        problems.append(
            f"parallel.tp={degrees.tp} does not divide model.num_heads={model.num_heads}; "
            f"use one of {', '.join(map(str, fitting))}"
        )
    shards = degrees.cp * (degrees.tp if config.parallel.sequence_parallel else 1)
    tokens = num_tokens(config)
    if tokens % shards:
        problems.append(
            f"parallel.cp={degrees.cp} parallel.tp={degrees.tp} share the {tokens} tokens of a "
            f"clip among {shards} ranks, which do not divide them; change data.height, data.width "
            f"or data.frames, or a degree"
        )
    if trainer.global_batch_size % degrees.dp:
        problems.append(
            f"trainer.global_batch_size={trainer.global_batch_size} is not divisible by the "
            f"{degrees.dp} data-parallel ranks; use a multiple of {degrees.dp}"
        )
    return problems


def num_tokens(config: Config) -> int:
    """Return the tokens of a clip."""
    frames, height, width = config.model.patch_size
    latent_frames = 1 + (config.data.frames - 1) // 8
    return (
        (latent_frames // frames)
        * (config.data.height // 8 // height)
        * (config.data.width // 8 // width)
    )


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

    @cached_property
    def dp_rank(self) -> int:
        """Return the place among the ranks that work on different samples."""
        return 0 if self.dp is None else int(self.dp.get_local_rank())

    @cached_property
    def shard(self) -> int:
        """Return which part of the sharded parameters this rank holds."""
        return 0 if self.mesh is None else int(self.mesh["dp_shard_cp"].get_local_rank())


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
        if degrees.tp > 1 and degrees.dp_shard * degrees.cp == 1:
            # kernels start in the order of the calls; FSDP's transfers would wait behind others
            os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
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
