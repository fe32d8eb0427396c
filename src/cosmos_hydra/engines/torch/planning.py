"""What `stage=plan` says: does it fit, how long does it take, what must host and disks hold."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from math import prod

from cosmos_hydra.config import Config, Linears, Precision, Stage
from cosmos_hydra.data.clips import latent_shape
from cosmos_hydra.engines.torch.checkpoint import bytes_per_parameter
from cosmos_hydra.engines.torch.compiling import is_long
from cosmos_hydra.engines.torch.degrees import (
    AXES,
    Degrees,
    check_degrees,
    degrees_of,
    token_count,
)
from cosmos_hydra.engines.torch.fit import (
    SETTINGS,
    Candidate,
    Change,
    changed,
    smallest_change,
    typed,
)
from cosmos_hydra.engines.torch.gpus import RATES, Rates
from cosmos_hydra.engines.torch.memory import (
    Memory,
    estimate_generation,
    estimate_training,
    gb,
    share_of,
)
from cosmos_hydra.engines.torch.step_time import step_time, video_s
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.models.size import forward_flop, parameter_count, trained_count

GPUS_OF_A_HOST = 8
HOST_SIZES = (2, 4, 8)
BF16 = 2
TEXT_MB = 1.05  # an embedding of 512 tokens of 1024 channels in bfloat16


def lines_of(config: Config) -> Iterator[str]:
    """Yield the screen, a fact a line.

    Raises: ConfigError when the degrees or the batch do not divide.
    """
    rates = RATES[config.plan.gpu]
    degrees = planned_degrees(config)
    if problems := check_degrees(config, degrees):
        raise ConfigError(*problems)
    if config.parallel.linears is Linears.float8 and not rates.float8:
        raise ConfigError(
            f"parallel.linears=float8 does not run on plan.gpu={config.plan.gpu}; "
            f"use parallel.linears=default"
        )
    data, clips = config.data, config.trainer.global_batch_size
    yield (
        f"model={config.model.name}: {parameter_count(config.model) / 1e9:.2f} billion "
        f"parameters, {trained_count(config) / 1e9:.2f} trained; {clips} clip"
        f"{'s' if clips > 1 else ''} a step of {data.frames} frames at {data.height}x{data.width} "
        f"({token_count(config):,} tokens)"
    )
    shape = " ".join(f"{axis}={getattr(degrees, axis)}" for axis in AXES)
    yield f"on {degrees.world_size} x {config.plan.gpu}, {gb(rates.memory_gb)} GB each: {shape}"
    if config.engine.name == "nemo":
        yield (
            "memory and time are those of engine=torch; Megatron keeps 18 bytes a parameter, of "
            "which dp ranks share 12"
        )
    yield from chain(
        _memory_lines(config, degrees, rates),
        _time_lines(config, degrees, rates),
        _generation_lines(config, rates),
        _storage_lines(config, degrees),
    )


def planned_degrees(config: Config) -> Degrees:
    """Return the mesh on plan.gpus GPUs. Raises: ConfigError when it does not multiply to them."""
    gpus = config.plan.gpus
    if gpus is None:
        asked = [getattr(config.parallel, axis) for axis in AXES]
        gpus = GPUS_OF_A_HOST if -1 in asked else prod(asked)
    if gpus < 1:
        raise ConfigError(f"plan.gpus={gpus} is no number of GPUs; at least 1")
    return degrees_of(config.parallel, gpus)


def training_memory(config: Config, degrees: Degrees) -> Memory:
    """Return what each GPU of a mesh needs to train."""
    precision = _precision(config)
    return estimate_training(config, "cuda", precision, share_of(config, degrees, precision))


def _memory_lines(config: Config, degrees: Degrees, rates: Rates) -> Iterator[str]:
    needed = training_memory(config, degrees)
    yield f"training memory  {needed}"
    if needed.total_gb <= rates.memory_gb:
        yield f"  fits, {gb(rates.memory_gb - needed.total_gb)} GB are left"
        return

    def needed_gb(change: Change) -> float:
        return training_memory(changed(config, change), degrees).total_gb

    lines = [f"  does not fit: {gb(needed.total_gb - rates.memory_gb)} GB too much"]
    settings = SETTINGS[Stage.post_train]
    change = smallest_change(config, settings, lambda c: needed_gb(c) <= rates.memory_gb)
    if change is not None:
        lines.append(f"smallest change that fits: {typed(change)} ({gb(needed_gb(change))} GB)")
    on_more = _more_gpus(config, degrees, rates, () if change else settings)
    if on_more:
        lines.append(f"{'or' if change else 'smallest change that fits:'} {on_more}")
    if len(lines) == 1:
        lines.append("no setting and no 8 GPUs are enough; use a smaller clip, or peft=lora")
    yield "; ".join(lines)


def _more_gpus(
    config: Config, degrees: Degrees, rates: Rates, settings: Sequence[Candidate]
) -> str | None:
    """Return on how many GPUs of a host it fits, and with what else; weights are shared by all."""
    sizes = [size for size in HOST_SIZES if size > degrees.world_size]
    for gpus, cp in ((gpus, cp) for gpus in sizes for cp in (1, *HOST_SIZES) if cp <= gpus):
        mesh = Degrees(1, gpus // cp, cp, 1)
        batch = max(mesh.dp, config.trainer.global_batch_size // mesh.dp * mesh.dp)
        step = {"trainer.global_batch_size": batch}
        shared = changed(config, step)

        def needed_gb(change: Change, shared: Config = shared, mesh: Degrees = mesh) -> float:
            other = changed(shared, change)
            is_whole = not check_degrees(other, mesh)
            return training_memory(other, mesh).total_gb if is_whole else float("inf")

        change = smallest_change(shared, settings, lambda c: needed_gb(c) <= rates.memory_gb)
        if needed_gb({}) <= rates.memory_gb:
            change = {}
        if change is not None:
            layout = {"parallel": "fsdp_cp", "parallel.cp": cp} if cp > 1 else {"parallel": "fsdp"}
            overrides = typed({**layout, "plan.gpus": gpus, **step, **change})
            return f"{overrides} ({gb(needed_gb(change))} GB each)"
    return None


def _time_lines(config: Config, degrees: Degrees, rates: Rates) -> Iterator[str]:
    if _precision(config) is Precision.fp32:
        yield "step             not estimated in float32"
        return
    time = step_time(config, degrees, rates)
    parts = ", ".join(f"{name} {_seconds(s)}" for name, s in asdict(time).items() if s)
    clips, steps = config.trainer.global_batch_size, config.trainer.max_steps
    flop = 3 * clips * forward_flop(config.model, token_count(config)) / degrees.world_size
    yield f"step             {_seconds(time.total_s)} s ({parts})"
    yield (
        f"  {time.total_s * degrees.world_size / clips:.3g} GPU-seconds a clip, "
        f"{flop / time.total_s / 1e12:.0f} TFLOP/s a GPU; trainer.max_steps={steps} takes "
        f"{steps * time.total_s / 3600:.1f} h without validation and previews"
    )


def _generation_lines(config: Config, rates: Rates) -> Iterator[str]:
    needed = estimate_generation(config, "cuda", _precision(config))
    verdict = "fits one GPU" if needed.total_gb <= rates.memory_gb else "does not fit one GPU"
    yield f"generate memory  {needed}: {verdict}"
    if _precision(config) is Precision.bf16:
        asked = config.generate.compile
        is_compiled = is_long(config) if asked is None else asked
        seconds = _seconds(video_s(config, rates, is_compiled=is_compiled))
        how = "compiled" if is_compiled else "not compiled"
        yield f"  {seconds} s a video on one GPU, blocks {how}, decoding aside"


def _storage_lines(config: Config, degrees: Degrees) -> Iterator[str]:
    checkpoint_gb = bytes_per_parameter(config.optim.state) * trained_count(config) / 1e9
    # every rank copies what it holds, into memory that is pinned as training begins
    copied_gb = checkpoint_gb * degrees.dp_replicate
    yield f"host memory      {gb(copied_gb)} GB of all ranks for copies of a checkpoint"
    keep = config.trainer.keep
    kept = f"{keep + 1} at most" if keep else "one each trainer.save_every steps"
    yield f"disk             {gb(checkpoint_gb)} GB a checkpoint ({kept}) in {config.paths.runs}"
    latent_mb = BF16 * prod(latent_shape(config.data, config.model.latent_channels)) / 1e6
    yield f"  {latent_mb:.3g} MB a sample, {TEXT_MB} MB a caption in {config.data.path}"
    if not config.model.weights.from_scratch:
        yield f"  {gb(BF16 * parameter_count(config.model) / 1e9)} GB of weights to start from"


def _precision(config: Config) -> Precision:
    is_fp32 = config.parallel.precision is Precision.fp32
    return Precision.fp32 if is_fp32 else Precision.bf16


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g}"
