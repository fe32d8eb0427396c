"""What engine=nemo needs, and which settings it has no counterpart of; imports none of it."""

from collections.abc import Iterator
from importlib import metadata

from cosmos_hydra.config import (
    Attention,
    Config,
    Fp8,
    Linears,
    PeftKind,
    Precision,
    Recompute,
    StatePrecision,
)

PACKAGES = ("nemo_toolkit", "megatron-core")
INSTALL = "pip install 'cosmos-hydra[nemo]'"
TRANSFORMER_ENGINE = "transformer-engine"
INSTALL_TE = "pip install --no-build-isolation 'cosmos-hydra[te]'"


def missing_packages() -> list[str]:
    """Return which of the packages are not installed."""
    return [name for name in PACKAGES if not is_installed(name)]


def is_installed(name: str) -> bool:
    """Return whether a package is installed."""
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def problems(config: Config) -> Iterator[str]:
    """Yield a line for all that keeps a config from training with this engine."""
    missing = missing_packages()
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        yield (
            f"engine.name=nemo needs {' and '.join(missing)}, which {verb} not installed; "
            f"run: {INSTALL}"
        )
    if config.engine.fp8 is not Fp8.none and not is_installed(TRANSFORMER_ENGINE):
        yield (
            f"engine.fp8={config.engine.fp8} needs {TRANSFORMER_ENGINE}, which is not installed; "
            f"run: {INSTALL_TE}"
        )
    parallel = config.parallel
    if config.engine.fp8 is not Fp8.none and parallel.precision is Precision.fp32:
        yield (
            f"engine.fp8={config.engine.fp8} does not go with parallel.precision=fp32; use bf16, "
            f"or engine.fp8=none"
        )
    if parallel.linears is not Linears.default:
        yield (
            f"parallel.linears={parallel.linears} is of engine=torch; use engine.fp8=delayed "
            f"with parallel.linears=default"
        )
    if config.engine.device == "cpu":
        yield "engine.device=cpu does not work with engine=nemo; use engine=torch"
    if parallel.recompute not in (Recompute.none, Recompute.full):
        yield (
            f"parallel.recompute={parallel.recompute} is unknown to engine=nemo; use none or full"
        )
    unknown = {
        "peft.kind": (config.peft.kind, PeftKind.none),
        "optim.state": (config.optim.state, StatePrecision.fp32),
        "parallel.attention": (parallel.attention, Attention.auto),
        "parallel.compile": (parallel.compile, False),
        "parallel.offload_activations": (parallel.offload_activations, False),
    }
    for key, (value, only) in unknown.items():
        if value != only:
            shown = str(value).lower() if isinstance(value, bool) else value
            wanted = str(only).lower() if isinstance(only, bool) else only
            yield f"{key}={shown} is unknown to engine=nemo; use {wanted}, or engine=torch"


def torch_problems(config: Config) -> Iterator[str]:
    """Yield a line for each of this engine's own switches that another engine is given."""
    if config.engine.fp8 is not Fp8.none:
        yield f"engine.fp8={config.engine.fp8} is for engine=nemo; use none"
    if config.engine.megatron_fsdp:
        yield "engine.megatron_fsdp=true is for engine=nemo; use parallel=fsdp"
