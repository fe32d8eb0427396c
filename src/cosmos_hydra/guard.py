"""Nothing in a config is called: what Hydra composes is examined before Hydra acts on it.

Hydra instantiates `_target_` of launcher, sweeper and callbacks, logging imports what its config
names, and a folder of configs given as `pkg://` is imported. Overrides, experiments and config
folders of others can reach all of these.
"""

import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from cosmos_hydra.changes import flat
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.overrides import explain
from cosmos_hydra.reading import shown
from cosmos_hydra.redaction import is_secret, leaks

# what Hydra may instantiate
OURS = "hydra_plugins.cosmos_launchers"
ALLOWED = {
    "hydra.launcher._target_": {
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        f"{OURS}.local.LocalLauncher",
        f"{OURS}.torchrun.TorchrunLauncher",
        f"{OURS}.slurm.SlurmLauncher",
    },
    "hydra.sweeper._target_": {
        "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
        f"{OURS}.grid.GridSweeper",
        f"{OURS}.search.OptunaSweeper",
    },
}
# fields of launchers that say what runs on a cluster beside the ranks, and with which Python
RUNNING = ("setup", "srun_args", "additional", "container_image", "container_mounts", "python")
HARMLESS: tuple[Any, ...] = (None, [], {}, ["--kill-on-bad-exit=1"])
CALLING = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")
# interpolations as usually written; however written, the resolvers refuse them
FROM_TEXT = re.compile(r"(?<!\\)\$\{\s*(oc\.create|oc\.decode)\s*:")
LOOKED_UP = re.compile(r"(?<!\\)\$\{\s*oc\.env\s*:\s*[\"']?(\w+)")
LOGGING = ("job_logging", "hydra_logging")
LEVELS = ("NOTSET", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
# variables that make nothing load code, write files or talk to another host
SETTABLE = re.compile(
    r"NCCL_(?!.*(PLUGIN|PATH|FILE|COMM_ID))\w+|GLOO_SOCKET_IFNAME|(OMP|MKL)_NUM_THREADS"
    r"|CUDA_(VISIBLE_DEVICES|LAUNCH_BLOCKING)|PYTORCH_(CUDA_)?ALLOC_CONF|TOKENIZERS_PARALLELISM"
    r"|TORCH_(CPP_LOG_LEVEL|DISTRIBUTED_DEBUG)|(HF_HUB|TRANSFORMERS)_OFFLINE"
)


def install() -> None:
    """Have every config that Hydra loads in this process examined, those of a sweep too.

    Hydra 1.3 has no public hook between composing and acting, hence the replaced methods.
    """
    _surround(ConfigRepository, "initialize_sources", _check_folders)
    _surround(ConfigLoaderImpl, "load_configuration", _check_composed)
    _surround(ConfigLoaderImpl, "load_sweep_config", _explain_job)
    # of --experimental-rerun, which unpickles a file
    entry: Any = importlib.import_module("hydra.main")
    entry._get_rerun_conf = _refuse_rerun
    OmegaConf.register_new_resolver("oc.env", _environment, replace=True)
    # what they make out of text comes into being after it could be examined
    for name in ("oc.create", "oc.decode"):
        OmegaConf.register_new_resolver(name, functools.partial(_refuse, name), replace=True)


def _surround(owner: type, name: str, around: Callable[..., Any]) -> None:
    method = getattr(owner, name)
    if hasattr(method, "__wrapped__"):
        return

    @functools.wraps(method)
    def surrounded(*arguments: Any, **named: Any) -> Any:
        return around(functools.partial(method, *arguments, **named), *arguments[1:])

    setattr(owner, name, surrounded)


def _check_folders(initialize: Callable[[], None], places: ConfigSearchPath) -> None:
    """Refuse folders of configs that would be imported, unless Hydra or a plugin names them."""
    for place in places.get_path():
        key = "--config-path" if place.provider == "main" else "hydra.searchpath"
        is_named = place.provider.startswith(("main", "hydra.searchpath"))
        if is_named and "://" in place.path.removeprefix("file://"):
            raise ConfigError(
                f"{key}={shown(place.path)} is refused: it would be imported; use --config-dir "
                f"with a folder"
            )
    initialize()


def _check_composed(compose: Callable[[], DictConfig], *_: object) -> DictConfig:
    try:
        composed = compose()
    except (HydraException, OmegaConfBaseException):
        raise
    except (AttributeError, KeyError, TypeError) as error:  # Hydra's own, for odd values
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"Hydra cannot compose this: {' '.join(reason.split())}") from error
    problems = examine(composed)
    if problems:
        raise ConfigError(*problems)
    return composed


def _explain_job(compose: Callable[[], DictConfig], *given: Any) -> DictConfig:
    """Raise ConfigError for a job of a sweep, which launchers know by its exit code."""
    try:
        return compose()
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, given[1] if len(given) > 1 else []) from error


def examine(composed: DictConfig) -> list[str]:
    """Return a line for everything in a composed config that could call code or is a secret."""
    values = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(values, dict)
    hydra = _section(values, "hydra")
    job = _section(hydra, "job")
    # what was typed, which stands in its own place too, and where
    for section, name in ((hydra, "overrides"), (job, "override_dirname"), (hydra, "runtime")):
        section.pop(name, None)
    problems = list(_calls(values, "")) or list(_no_sections(hydra))
    return problems or [*_acting(hydra), *_secrets(values)]


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    section = values.get(name)
    return section if isinstance(section, dict) else {}


def _calls(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, list):
        for index, part in enumerate(value):
            yield from _calls(part, f"{key}[{index}]")
    if isinstance(value, dict):
        for name, part in value.items():
            inner = f"{key}.{name}" if key else str(name)
            if name in CALLING and part not in ALLOWED.get(inner, ()):
                yield f"{shown(inner)} is refused: nothing in a config is called; leave it out"
            else:
                yield from _calls(part, inner)
    if isinstance(value, str):
        for name in FROM_TEXT.findall(value):
            yield f"{shown(key)} is refused: {_made_from_text(name)}"


def _no_sections(hydra: dict[str, Any]) -> Iterator[str]:
    """Name what would become a section only when Hydra looks it up."""
    acting = {name: hydra.get(name) for name in ("launcher", "sweeper", "job", *LOGGING)}
    acting["job.env_set"] = _section(hydra, "job").get("env_set")
    for name, section in acting.items():
        if not isinstance(section, dict):
            yield f"hydra.{name} is refused: it is no section; leave it out"


def _acting(hydra: dict[str, Any]) -> Iterator[str]:
    if hydra.get("callbacks"):
        yield "hydra.callbacks is refused: callbacks would run code; leave it out"
    typed = sys.argv[1:]
    for name in RUNNING:
        key = f"hydra.launcher.{name}"
        is_typed = any(
            argument.lstrip("+").startswith((f"{key}=", f"{key}.")) for argument in typed
        )
        if hydra["launcher"].get(name) not in HARMLESS and not is_typed:
            yield f"{key} is refused: a file of configs would say what runs there; type it instead"
    for name in LOGGING:
        if not _is_quiet(hydra[name]):
            yield f"hydra.{name} is refused: logging configs can call code; set hydra.verbose=true"
    for variable in hydra["job"]["env_set"]:
        if not SETTABLE.fullmatch(str(variable)):
            yield (
                f"hydra.job.env_set.{shown(variable)} is refused: it could load code or redirect "
                f"requests; set it in the shell"
            )


def _is_quiet(logging: dict[str, Any]) -> bool:
    """Return whether a logging config sets no more than levels; any other text may be imported."""
    root = logging.get("root") or {}
    return (
        logging.keys() <= {"version", "root", "disable_existing_loggers"}
        and logging.get("version") == 1
        and logging.get("disable_existing_loggers") in (None, True, False)
        and isinstance(root, dict)
        and root.keys() <= {"level"}
        and root.get("level", "INFO") in LEVELS
    )


def _secrets(values: dict[str, Any]) -> Iterator[str]:
    settings = [f"{key}={value}" for key, value in flat(values).items()]
    yield from leaks(settings)
    for setting in settings:
        for name in filter(is_secret, LOOKED_UP.findall(setting)):
            yield (
                f"{shown(setting.partition('=')[0])} looks up {name}, a secret, which would be "
                f"stored with the run; leave it out"
            )


def _environment(name: str, *default: Any) -> str | None:
    if is_secret(name):
        raise ConfigError(f"{name} is a secret, which would be stored with the run; leave it out")
    return oc.env(name, *default)


def _refuse(name: str, *_: object) -> NoReturn:
    raise ConfigError(_made_from_text(name))


def _made_from_text(name: str) -> str:
    return f"{name} makes config out of text; write the value itself"


def _refuse_rerun(*_: object) -> NoReturn:
    raise ConfigError("--experimental-rerun is refused: it unpickles a file; repeat the command")
