"""Nothing in a config is called: what Hydra composes is examined before Hydra acts on it.

Hydra instantiates `_target_` of launcher, sweeper and callbacks, and logging calls what its
config names. Overrides, experiments and config folders of others can reach all of these.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf

from cosmos_hydra.errors import ConfigError

# what Hydra may instantiate, and where
ALLOWED = {
    "hydra.launcher._target_": {"hydra._internal.core_plugins.basic_launcher.BasicLauncher"},
    "hydra.sweeper._target_": {"hydra._internal.core_plugins.basic_sweeper.BasicSweeper"},
}
CALLING = {"_target_", "_partial_", "_args_", "_recursive_", "_convert_"}
# of a logging config: these keys call nothing
QUIET = {"version", "root", "disable_existing_loggers"}
# variables that make another program, or Python itself, load code
LOADING = re.compile(r"LD_.*|DYLD_.*|PYTHON.*|PATH|BASH_ENV|ENV|TORCH_EXTENSIONS_DIR")


def install() -> None:
    """Have every config that Hydra composes in this process examined, those of a sweep too.

    Hydra 1.3 has no public hook between composing and acting, hence the wrapped method.
    """
    compose = ConfigLoaderImpl.load_configuration
    if hasattr(compose, "__wrapped__"):
        return

    @functools.wraps(compose)
    def guarded(*arguments: Any, **named: Any) -> DictConfig:
        composed = compose(*arguments, **named)
        problems = examine(composed)
        if problems:
            raise ConfigError(*problems)
        return composed

    ConfigLoaderImpl.load_configuration = guarded


def examine(composed: DictConfig) -> list[str]:
    """Return a line for everything in a composed config that could call code."""
    values = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(values, dict)
    return [*_calls(values, ""), *_hydra(values.get("hydra") or {})]


def _calls(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, list):
        for index, part in enumerate(value):
            yield from _calls(part, f"{key}[{index}]")
    if isinstance(value, dict):
        for name, part in value.items():
            inner = f"{key}.{name}" if key else str(name)
            if name in CALLING and part not in ALLOWED.get(inner, ()):
                yield f"{inner}={part} is refused: nothing in a config is called; leave it out"
            else:
                yield from _calls(part, inner)


def _hydra(values: dict[str, Any]) -> Iterator[str]:
    if values.get("callbacks"):
        yield "hydra.callbacks is refused: callbacks would run code; leave it out"
    for name in ("job_logging", "hydra_logging"):
        logging = values.get(name) or {}
        root = logging.get("root") or {}
        if not QUIET.issuperset(logging) or not {"level"}.issuperset(root):
            yield f"hydra.{name} is refused: logging configs can call code; set hydra.verbose=true"
    for variable in (values.get("job") or {}).get("env_set") or {}:
        if LOADING.fullmatch(str(variable)):
            yield f"hydra.job.env_set.{variable} is refused: it can load code; set it in the shell"
