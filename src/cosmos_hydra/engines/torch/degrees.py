"""How many ranks the mesh has along each axis, and whether model and batch divide by them."""

from dataclasses import dataclass
from math import prod

from cosmos_hydra.config import Config, Linears, ParallelConfig, PeftKind
from cosmos_hydra.data.clips import latent_shape
from cosmos_hydra.errors import ConfigError

AXES = ("dp_replicate", "dp_shard", "cp", "tp")


@dataclass(frozen=True)
class Degrees:
    """Ranks along each axis of the mesh."""

    dp_replicate: int
    dp_shard: int
    cp: int
    tp: int

    @property
    def world_size(self) -> int:
        """Return the number of ranks."""
        return self.dp * self.cp * self.tp

    @property
    def dp(self) -> int:
        """Return how many ranks work on different samples."""
        return self.dp_replicate * self.dp_shard

    def needs_ring(self, num_heads: int) -> bool:
        """Return whether the cp ranks cannot share the heads that tp leaves."""
        return num_heads // self.tp % self.cp != 0


def degrees_of(parallel: ParallelConfig, world_size: int) -> Degrees:
    """Return the degrees with -1 replaced by what is left.

    Raises: ConfigError when they are no numbers of ranks, or do not multiply to that of the job.
    """
    asked = {axis: getattr(parallel, axis) for axis in AXES}
    wrong = [
        f"parallel.{axis}={degree} is no number of ranks; at least 1, or -1 (what is left)"
        for axis, degree in asked.items()
        if degree < 1 and degree != -1
    ]
    if wrong:
        raise ConfigError(*wrong)
    open_axes = [axis for axis, degree in asked.items() if degree == -1]
    if len(open_axes) > 1:
        shown = " ".join(f"parallel.{axis}=-1" for axis in open_axes)
        raise ConfigError(f"{shown} cannot all be what is left; set all but one to a number")
    known = prod(degree for degree in asked.values() if degree != -1)
    for axis in open_axes:
        asked[axis] = world_size // known
    if prod(asked.values()) != world_size:
        shown = " ".join(f"parallel.{axis}={getattr(parallel, axis)}" for axis in AXES)
        fixed = f"start {known} ranks, or set one of them to -1 (what is left)"
        raise ConfigError(
            f"{shown} do not multiply to the {world_size} ranks of this job; "
            f"{f'start a multiple of {known} ranks' if open_axes else fixed}"
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
    if degrees.tp > 1 and config.peft.kind is PeftKind.lora:
        problems.append(
            f"parallel.tp={degrees.tp} does not work with peft=lora; share tokens with "
            f"parallel.cp and weights with parallel.dp_shard"
        )
    if degrees.tp > 1 and config.parallel.linears is Linears.float8:
        problems.append(
            f"parallel.tp={degrees.tp} does not work with parallel.linears=float8; share tokens "
            f"with parallel.cp and weights with parallel.dp_shard"
        )
    shards = degrees.cp * (degrees.tp if config.parallel.sequence_parallel else 1)
    tokens = token_count(config)
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


def token_count(config: Config) -> int:
    """Return the tokens of the configured clip."""
    _, *sizes = latent_shape(config.data, config.model.latent_channels)
    return prod(size // patch for size, patch in zip(sizes, config.model.patch_size, strict=True))
