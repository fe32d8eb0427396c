"""Which rank does what: a device mesh with the axes dp_replicate, dp_shard, cp and tp.

Ranks of one dp_replicate x dp_shard place work on the same samples. cp (context parallel) shares
the tokens of a sample, tp (tensor parallel) the heads and the MLP; tp is innermost, so that its
ranks are neighbours.
"""

import os
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from cosmos_hydra.config import Config
from cosmos_hydra.engines.torch.degrees import AXES, Degrees, check_degrees, degrees_of
from cosmos_hydra.engines.torch.team import Team, gather_team
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.place import local_rank, world_size


@dataclass(frozen=True, kw_only=True)
class Ranks(Team):
    """A team that trains: `mesh` is None where this process is the only one."""

    degrees: Degrees
    device: torch.device
    # weights lie on this one: dp_replicate, dp_shard_cp (both flattened), tp
    mesh: DeviceMesh | None = None
    # ranks with other samples; with other tokens of the same samples; the latter with tp too
    dp: DeviceMesh | None = None
    cp: DeviceMesh | None = None
    cp_tp: DeviceMesh | None = None

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


def order_kernels(degrees: Degrees, is_fsdp: bool = True) -> None:
    """Have kernels start in the order of the calls, before CUDA does, where tp alone talks.

    FSDP's transfers would wait behind others.
    """
    if degrees.tp > 1 and (degrees.dp_shard * degrees.cp == 1 or not is_fsdp):
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
        return Ranks(degrees=degrees, device=device)
    if device.type == "cuda":
        is_fsdp = config.engine.name == "torch" or config.engine.megatron_fsdp
        order_kernels(degrees, is_fsdp)
        device = torch.device("cuda", local_rank())
    team = gather_team(device)
    sizes = tuple(getattr(degrees, axis) for axis in AXES)
    axes = init_device_mesh(device.type, sizes, mesh_dim_names=AXES)
    mesh = init_device_mesh(
        device.type,
        (degrees.dp_replicate, degrees.dp_shard * degrees.cp, degrees.tp),
        mesh_dim_names=("dp_replicate", "dp_shard_cp", "tp"),
    )
    return Ranks(
        rank=team.rank,
        cpu_group=team.cpu_group,
        degrees=degrees,
        device=device,
        mesh=mesh,
        dp=axes["dp_replicate", "dp_shard"]._flatten("dp"),
        cp=axes["cp"],
        cp_tp=axes["cp", "tp"]._flatten("cp_tp"),
    )
