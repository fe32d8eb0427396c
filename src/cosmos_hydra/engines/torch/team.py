"""All ranks of a job: how they begin, and what they tell each other whatever each of them does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from cosmos_hydra.errors import CosmosError
from cosmos_hydra.place import local_rank, world_size

T = TypeVar("T")
# rank 0 may read terabytes of videos before it answers the others
PATIENCE = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Team:
    """This process among all; without torchrun or srun the only one, and `cpu_group` is None."""

    rank: int = 0
    # all ranks, over gloo: also for the thread that writes checkpoints
    cpu_group: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def size(self) -> int:
        """Return the number of ranks."""
        return 1 if self.cpu_group is None else self.cpu_group.size()

    def wait(self) -> None:
        """Block until every rank is here."""
        if self.cpu_group is not None:
            dist.barrier(self.cpu_group)

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, by rank; called by every rank."""
        if self.cpu_group is None:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.cpu_group)
        return found

    def share(self, items: Sequence[T]) -> list[T]:
        """Return those of the items that are this rank's; neighbours go to different ranks."""
        return list(items[self.rank :: self.size])

    def decide(self, action: Callable[[], T]) -> T:
        """Return what `action` returns on rank 0, the only one that runs it.

        Raises: on every rank the CosmosError that it raises there.
        """
        if self.cpu_group is None:
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


def gather_team(device: torch.device) -> Team:
    """Return all ranks of the job; called by every rank, and waits for all of them."""
    if world_size() == 1:
        return Team()
    if device.type == "cuda":
        torch.cuda.set_device(local_rank())
    if not dist.is_initialized():
        # gloo beside NCCL carries checkpoints and flags while the GPU computes
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=1))
    return Team(rank=dist.get_rank(), cpu_group=dist.new_group(backend="gloo", timeout=PATIENCE))
