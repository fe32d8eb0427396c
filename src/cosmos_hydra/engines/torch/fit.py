"""Refuse what a device cannot run before it is built, and name the smallest change that fits."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import torch

from cosmos_hydra.checks import SPATIAL_FACTOR, TEMPORAL_FACTOR
from cosmos_hydra.config import Choice, Config, Precision, Stage
from cosmos_hydra.diffusion.generation import clip_passes
from cosmos_hydra.engines.torch.degrees import degrees_of
from cosmos_hydra.engines.torch.memory import (
    Memory,
    estimate_generation,
    estimate_training,
    gb,
    share_of,
    token_count,
)
from cosmos_hydra.engines.torch.precision import effective_precision
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.free_memory import host_free_bytes
from cosmos_hydra.models.size import forward_flop, parameter_count
from cosmos_hydra.place import world_size

# config keys and other values for them
Change = dict[str, Any]
# what can be changed in one respect, the smallest change first
Candidate = Callable[[Config], Iterator[Change]]

MOST_PARAMETERS_ON_CPU = 1e9
CORE_TFLOP_PER_S = 0.1  # float32 matrix products on one core with wide vectors, at best
SMALLEST_SHARE = 4  # pictures are made smaller down to a quarter of their height
UNITS_S = (("days", 86400), ("hours", 3600), ("minutes", 60))
logger = logging.getLogger(__name__)


def check_memory(
    config: Config,
    device: torch.device,
    purpose: Stage,
    can_change_clip: bool = True,
    free_bytes: float | None = None,
) -> None:
    """Refuse post_train or generate where the device lacks memory, or is a CPU for a large model.

    `free_bytes` is what the device has free; None = look. With engine.force these are warnings.
    Raises: ConfigError with the numbers and the smallest change that fits.
    """
    free_gb = (free_bytes_of(device) if free_bytes is None else free_bytes) / 1e9
    problems = [
        *_lacks_memory(config, device, purpose, can_change_clip, free_gb),
        *_takes_long(config, device, purpose),
    ]
    if problems and not config.engine.force:
        raise ConfigError(*(f"{problem}; engine.force=true tries anyway" for problem in problems))
    for problem in problems:
        logger.warning(f"engine.force=true although {problem}")


def free_bytes_of(device: torch.device) -> int:
    """Return the memory of a device that this process can still fill."""
    if device.type != "cuda":
        return host_free_bytes()
    # what earlier stages left in the allocator is free to us
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def estimate(config: Config, device: torch.device, purpose: Stage) -> Memory:
    """Return the memory of post_train or generate on a device, in its effective precision.

    Of post_train on several ranks it is what each of them needs.
    """
    precision = effective_precision(config.parallel.precision, device)
    if purpose is not Stage.post_train:
        return estimate_generation(config, device.type, precision)
    share = share_of(config, degrees_of(config.parallel, world_size()), precision)
    return estimate_training(config, device.type, precision, share)


def _lacks_memory(
    config: Config, device: torch.device, purpose: Stage, can_change_clip: bool, free_gb: float
) -> Iterator[str]:
    def needed_gb(change: Change) -> float:
        return estimate(changed(config, change), device, purpose).total_gb

    needed = estimate(config, device, purpose)
    if needed.total_gb <= free_gb:
        return
    parts = [f"model={config.model.name} needs {needed} on {device} but {gb(free_gb)} GB are free"]
    settings, clip = SETTINGS[purpose], CLIP if can_change_clip else ()
    change = smallest_change(config, (*settings, *clip), lambda c: needed_gb(c) <= free_gb)
    frugal = _most_frugal(config, settings, needed_gb)
    if frugal and (change is None or any(key.startswith("data.") for key in change)):
        parts.append(f"{typed(frugal)} needs {gb(needed_gb(frugal))}: still too much")
    if change is not None:
        parts.append(f"smallest change that fits: {typed(change)} ({gb(needed_gb(change))} GB)")
        if purpose is Stage.post_train and any(key.startswith("data.") for key in change):
            parts.append("stage=preprocess has to make the samples again for that")
    else:
        place = "machine" if device.type == "cpu" else "GPU"
        least = f"use an otherwise empty {place} with at least {math.ceil(needed_gb(frugal))} GB"
        parts.append(f"a smaller clip does not fit either, {least}" if clip else least)
    yield "; ".join(parts)


def _takes_long(config: Config, device: torch.device, purpose: Stage) -> Iterator[str]:
    parameters = parameter_count(config.model)
    if device.type != "cpu" or parameters <= MOST_PARAMETERS_ON_CPU:
        return
    if purpose is Stage.post_train:
        what, passes = "a training step", 3 * config.trainer.global_batch_size
    else:
        what, passes = "a video", clip_passes(config.generate)
    tflop = passes * forward_flop(config.model, token_count(config)) / 1e12
    cores = torch.get_num_threads()
    takes = duration(tflop / (cores * CORE_TFLOP_PER_S))
    yield (
        f"model={config.model.name} has {parameters / 1e9:.1f} billion parameters: {what} would "
        f"take this CPU {takes} at best ({tflop:,.0f} TFLOP at {CORE_TFLOP_PER_S} TFLOP/s a "
        f"core, cores {cores}); use a GPU, or model=tiny"
    )


def duration(seconds: float) -> str:
    """Return a time as shown to users, in the unit that fits."""
    for name, unit_s in UNITS_S:
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {name}"
    return f"{math.ceil(seconds)} seconds"


def smallest_change(
    config: Config, candidates: Iterable[Candidate], fits: Callable[[Change], bool]
) -> Change | None:
    """Return what fits and changes the fewest respects; of those what keeps most of a batch."""

    def work(change: Change) -> int:
        other = changed(config, change)
        return other.trainer.micro_batch_size * token_count(other)

    options = [list(candidate(config)) for candidate in candidates]
    for count in range(1, len(options) + 1):
        for chosen in combinations(options, count):
            fitting = [change for change in map(_merged, product(*chosen)) if fits(change)]
            if fitting:
                return max(fitting, key=work)
    return None


def _most_frugal(
    config: Config, settings: Iterable[Candidate], needed_gb: Callable[[Change], float]
) -> Change:
    """Return the settings with which the same clip needs least, without those that do not help."""
    frugal = _merged(change for candidate in settings for change in candidate(config))
    for key in list(frugal):
        without = {name: value for name, value in frugal.items() if name != key}
        if needed_gb(without) <= needed_gb(frugal):
            frugal = without
    return frugal


def _merged(changes: Iterable[Change]) -> Change:
    return {key: value for change in changes for key, value in change.items()}


def typed(change: Change) -> str:
    """Return a change as overrides."""
    return " ".join(f"{key}={value}" for key, value in change.items())


def changed(config: Config, change: Change) -> Config:
    """Return a config with a change."""
    for key, value in change.items():
        section, name = key.split(".")
        other = replace(getattr(config, section), **{name: value})
        config = replace(config, **{section: other})
    return config


def _no_previews(config: Config) -> Iterator[Change]:
    if config.trainer.preview_every:
        yield {"trainer.preview_every": 0}


def _smaller_batch(config: Config) -> Iterator[Change]:
    size = config.trainer.micro_batch_size
    while size > 1:
        size //= 2
        yield {"trainer.micro_batch_size": size}


def _smaller_step(config: Config) -> Iterator[Change]:
    # gradients need not wait for further batches
    if config.trainer.global_batch_size > 1:
        yield {"trainer.global_batch_size": 1, "trainer.micro_batch_size": 1}


def _recompute(config: Config) -> Iterator[Change]:
    yield from _next_ones("parallel.recompute", config.parallel.recompute)


def _smaller_moments(config: Config) -> Iterator[Change]:
    yield from _next_ones("optim.state", config.optim.state)


def _next_ones(key: str, chosen: Choice) -> Iterator[Change]:
    """Yield what the schema lists after the choice, which takes less each time."""
    choices = list(type(chosen))
    for choice in choices[choices.index(chosen) + 1 :]:
        yield {key: choice}


def _half_precision(config: Config) -> Iterator[Change]:
    if config.parallel.precision is Precision.fp32:
        yield {"parallel.precision": Precision.bf16}


def _no_guidance(config: Config) -> Iterator[Change]:
    if config.generate.guidance:
        yield {"generate.guidance": 0.0}


def _fewer_frames(config: Config) -> Iterator[Change]:
    for frames in range(config.data.frames - TEMPORAL_FACTOR, TEMPORAL_FACTOR, -TEMPORAL_FACTOR):
        yield {"data.frames": frames}


def _smaller_pictures(config: Config) -> Iterator[Change]:
    data = config.data
    row, column = (SPATIAL_FACTOR * size for size in config.model.patch_size[1:])
    for height in range(data.height - row, data.height // SMALLEST_SHARE - 1, -row):
        width = max(column, round(data.width * height / data.height / column) * column)
        yield {"data.height": height, "data.width": width}


# what can be changed, in the order in which it is tried
SETTINGS: dict[Stage, tuple[Candidate, ...]] = {
    Stage.post_train: (
        _no_previews,
        _smaller_batch,
        _recompute,
        _half_precision,
        _smaller_step,
        _smaller_moments,
    ),
    Stage.generate: (_half_precision, _no_guidance),
}
CLIP: tuple[Candidate, ...] = (_fewer_frames, _smaller_pictures)
