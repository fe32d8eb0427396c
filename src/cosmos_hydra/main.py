"""The command `cosmos-hydra`: compose the config, check it, run the stages.

Imports no torch, so that `--help` and config errors come at once. `hydra.main` would turn every
composition error into exit code 1; with HYDRA_FULL_ERROR set it raises, and the error becomes one
line and exit code 2 here.
"""

import importlib
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cosmos_hydra import config as schema
from cosmos_hydra import files, guard, place
from cosmos_hydra.changes import flat
from cosmos_hydra.checks import check, settle
from cosmos_hydra.claim import InUse, claim, waiting_for_others
from cosmos_hydra.errors import ConfigError, CosmosError, Preempted, StageError, storage_error
from cosmos_hydra.hub.cache import fill_paths
from cosmos_hydra.job import Job
from cosmos_hydra.logs import logging_to
from cosmos_hydra.overrides import (
    as_single,
    conf_folder,
    explain,
    is_sweep,
    quote_free_text,
    refuse_null_groups,
    refuse_several_values,
)
from cosmos_hydra.redaction import leaks, redact, redacted_output
from cosmos_hydra.runs import run_directory
from cosmos_hydra.signals import ending_when_interrupted, ignore_all, leave_after_the_first

STAGES = {
    schema.Stage.download: "cosmos_hydra.stages.download:run",
    schema.Stage.preprocess: "cosmos_hydra.stages.preprocess:run",
    schema.Stage.post_train: "cosmos_hydra.stages.post_train:run",
    schema.Stage.generate: "cosmos_hydra.stages.generate:run",
    schema.Stage.report: "cosmos_hydra.stages.report:run",
    schema.Stage.export: "cosmos_hydra.stages.export:run",
    schema.Stage.inspect: "cosmos_hydra.stages.inspect:run",
    schema.Stage.plan: "cosmos_hydra.stages.plan:run",
    schema.Stage.doctor: "cosmos_hydra.stages.doctor:run",
}
# these make no run of their own
LOOKING = (
    schema.Stage.download,
    schema.Stage.report,
    schema.Stage.export,
    schema.Stage.inspect,
    schema.Stage.plan,
    schema.Stage.doctor,
)
# in these every rank of a job takes its part
SHARED = (schema.Stage.preprocess, schema.Stage.post_train, schema.Stage.generate)
# hydra.sweep.subdir of a command that is no sweep: launchers run even one job as Hydra's MULTIRUN,
# which heeds hydra.sweep.dir instead of hydra.run.dir
SINGLE = "."
logger = logging.getLogger(__name__)


def run_stages(config: schema.Config, job: Job) -> object:
    """Run the config's stages in order; return the validation loss, or what the last one returned.

    Raises: ConfigError before anything is built; StageError when data or machine do not fit.
    """
    result: object = None
    if schema.Stage.post_train in config.stages:
        place.use_expandable_segments()
    # with the others, which have several ranks no use, rank 0 is alone
    stages = [s for s in config.stages if place.is_first() or s in SHARED]
    if place.world_size() > 1 and not set(config.stages) & set(SHARED):
        logger.info(
            f"stage={config.stage.name} runs on one rank; the others of {place.world_size()} "
            f"have nothing to do"
        )
    for stage in stages:
        module, _, function = STAGES[stage].partition(":")
        if len(config.stages) > 1:
            logger.info(f"== {stage.name} ==")
        returned = getattr(importlib.import_module(module), function)(config, job)
        if schema.Stage.post_train not in config.stages or stage is schema.Stage.post_train:
            result = returned
    return result


def task(composed: DictConfig) -> object:
    """Hydra's entry: one job, alone or in a sweep."""
    hydra_config = HydraConfig.get()
    choices = OmegaConf.to_container(hydra_config.runtime.choices)
    assert isinstance(choices, dict)
    # as typed: `${` in them belongs to the config, not to Hydra's list of overrides
    typed = OmegaConf.to_container(hydra_config.overrides, resolve=False)
    assert isinstance(typed, dict)
    job = Job(
        directory=_shown(Path(hydra_config.runtime.output_dir)),
        overrides=tuple(typed["task"]),
        launch=tuple(item for item in typed["hydra"] if item.startswith("hydra.launcher.")),
        composed=composed,
        choices={str(group): str(option) for group, option in choices.items()},
    )
    try:
        with _hydra_raises(False), redacted_output():  # a rank has its own output
            return _run(job, hydra_config)
    except (CosmosError, OSError) as error:
        problem = storage_error(error) if isinstance(error, OSError) else error
        if problem is None or hydra_config.mode is RunMode.MULTIRUN:
            raise
        # SystemExit passes through Hydra without its own report
        raise SystemExit(report(problem)) from None
    finally:
        if place.is_first():
            _discard_if_unused(job.directory)


def _run(job: Job, hydra_config: Any) -> object:
    assert job.composed is not None
    config, messages = _checked(job.composed)
    if config.launch.dry_run:  # a launcher would have shown what it starts
        raise ConfigError(
            "launch.dry_run=true has nothing to show with launch=local, which starts no other "
            "process; use launch=torchrun or launch=slurm"
        )
    with ExitStack() as stack:
        here = job.directory
        is_writing = config.stage not in LOOKING and place.is_first()
        log = here / "run.log" if is_writing else None
        stack.enter_context(logging_to(log, hydra_config.verbose, place.is_first()))
        if log is not None:
            try:
                stack.enter_context(claim(here / files.LOCK, str(here)))
                files.remove_leftovers(here, here / ".hydra", here / "previews")
            except InUse:
                if config.stage is not schema.Stage.preprocess:
                    raise
                # one more to share the work; the record in .hydra/ is the other's
                job = replace(job, composed=None)
        if hydra_config.mode is RunMode.MULTIRUN and hydra_config.sweep.subdir != SINGLE:
            stack.enter_context(waiting_for_others())
            logger.info(f"== job {hydra_config.job.num}: {job.directory} ==")
        for message in messages:
            logger.warning(message)
        try:
            result = run_stages(config, job)
        except OSError as error:
            raise storage_error(error) or error from error
        is_number = not isinstance(result, float) or math.isfinite(result)
        if hydra_config.mode is RunMode.MULTIRUN and not is_number:  # a sweep compares them
            raise StageError(f"the last validation loss is {result}: training has diverged")
        return result


def _checked(composed: DictConfig) -> tuple[schema.Config, list[str]]:
    """Return a config in which no problem is known, and what to warn of."""
    config = _load(composed)
    messages = settle(config)
    if config.stage is not schema.Stage.download:
        trains = schema.Stage.post_train in config.stages
        fill_paths(config.model, with_weights=trains and config.resume.path is None)
    problems = [*leaks(_settings(config)), *check(config)]
    if problems:
        raise ConfigError(*problems)
    return config, messages


def check_job(composed: DictConfig) -> None:
    """Raise ConfigError for a job that a launcher could not begin; called before any of them is."""
    if place.world_size() > 1:
        raise ConfigError(
            f"each of {place.world_size()} ranks would start jobs of its own; leave torchrun or "
            f"srun out, or launch= and -m"
        )
    _checked(composed)


# sweepers and launchers look for them there; they know nothing else of this package
task.check = check_job  # type: ignore[attr-defined]
task.redact = redact  # type: ignore[attr-defined]


def _settings(config: schema.Config) -> Iterator[str]:
    """Return every value of a config as `key=value`."""
    return (f"{key}={value}" for key, value in flat(schema.to_dict(config)).items())


@contextmanager
def _hydra_raises(is_raising: bool) -> Iterator[None]:
    """Decide whether hydra.main raises or prints and exits; off while stages run, for children."""
    before = os.environ.pop("HYDRA_FULL_ERROR", None)
    if is_raising:
        os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR", None)
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _shown(path: Path) -> Path:
    """Return the path relative to the working directory where that is shorter to read."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _load(composed: DictConfig) -> schema.Config:
    try:
        return schema.load(composed)
    except OmegaConfBaseException as error:
        raise explain(error, sys.argv[1:]) from None


def _discard_if_unused(directory: Path) -> None:
    """Remove the folders that Hydra made for a job that wrote nothing."""
    log = directory / "run.log"
    if log.is_file() and log.stat().st_size == 0:
        log.unlink()
    here = Path.cwd()
    folder = directory.resolve()
    while folder.is_dir() and folder != here and not any(folder.iterdir()):
        folder.rmdir()
        if here not in folder.parents:
            return  # folders elsewhere may be the user's own
        folder = folder.parent


def report(error: CosmosError) -> int:
    """Print an error the user can act on, one line a problem, and return its exit code."""
    if isinstance(error, Preempted):
        ignore_all()
    if error.is_everywhere and not place.is_first():  # what every rank finds, one says
        if not isinstance(error, Preempted):
            leave_after_the_first()
        return error.exit_code
    name = "cosmos-hydra" if place.is_first() else f"cosmos-hydra: rank {place.rank()}"
    # the exit code matters more, and the terminal may be gone
    with suppress(OSError):
        for line in str(error).splitlines():
            sys.stderr.write(f"{name}: {line}\n")
    return error.exit_code


def help_text() -> str:
    """Return what `--help` prints; Hydra's way there lists every group first, which takes long."""
    page = OmegaConf.load(conf_folder() / "hydra/help/cosmos.yaml")
    return str(OmegaConf.create({"hydra": {"help": page}}).hydra.help.template)


def main() -> None:
    """Run the command line; ends with exit code 0, 1, 2, 75 or 130."""
    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"]):
        sys.stdout.write(help_text())
        return
    sys.excepthook = _print_traceback
    sys.argv[1:] = as_single(quote_free_text(arguments))
    if "--hydra-help" in arguments:  # composed without config.yaml, where these are chosen
        sys.argv += ["hydra/job_logging=none", "hydra/hydra_logging=none"]
    schema.register()
    guard.install()
    OmegaConf.register_new_resolver("run_directory", run_directory, replace=True)
    entry = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
    with redacted_output(), ending_when_interrupted():
        _run_hydra(entry(task), arguments)


def _run_hydra(run: Callable[[], Any], arguments: list[str]) -> None:
    try:
        _refuse(arguments)
        with _hydra_raises(True):
            run()
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        sys.exit(report(explain(error, arguments)))
    except CosmosError as error:
        sys.exit(report(error))
    except OSError as error:
        problem = storage_error(error)
        if problem is None:
            raise
        sys.exit(report(problem))


def _refuse(arguments: list[str]) -> None:
    """Raise ConfigError for what must not reach Hydra, whose messages repeat what was typed."""
    problems = leaks(arguments)
    if problems:
        raise ConfigError(*problems)
    refuse_null_groups(arguments)
    if not is_sweep(arguments):
        refuse_several_values(arguments)


def _print_traceback(kind: type, error: BaseException, trace: TracebackType | None) -> None:
    """Print an unexpected error as Python does, without secrets."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))
