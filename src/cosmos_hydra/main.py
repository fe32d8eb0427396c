"""The command `cosmos-hydra`: compose the config, check it, run the stages.

Imports no torch, so that `--help` and config errors come at once. `hydra.main` would turn every
composition error into exit code 1; with HYDRA_FULL_ERROR set it raises, and the error becomes one
line and exit code 2 here.
"""

import importlib
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cosmos_hydra import config as schema
from cosmos_hydra.checks import check, settle
from cosmos_hydra.errors import ConfigError, CosmosError
from cosmos_hydra.job import Job
from cosmos_hydra.overrides import conf_folder, explain, quote_free_text, refuse_null_groups
from cosmos_hydra.runs import run_directory

STAGES = {
    schema.Stage.preprocess: "cosmos_hydra.stages.preprocess:run",
    schema.Stage.post_train: "cosmos_hydra.stages.post_train:run",
    schema.Stage.generate: "cosmos_hydra.stages.generate:run",
}
INTERRUPTED = 130
logger = logging.getLogger(__name__)


def run_stages(config: schema.Config, job: Job) -> object:
    """Run the config's stages in order and return what the last one returned.

    Raises: ConfigError before anything is built; StageError when data or machine do not fit.
    """
    for message in settle(config):
        logger.warning(message)
    problems = check(config)
    if problems:
        raise ConfigError(*problems)
    result: object = None
    for stage in config.stages:
        module, _, function = STAGES[stage].partition(":")
        if len(config.stages) > 1:
            logger.info(f"== {stage.name} ==")
        result = getattr(importlib.import_module(module), function)(config, job)
    return result


def task(composed: DictConfig) -> object:
    """Hydra's entry: one job, alone or in a sweep."""
    hydra_config = HydraConfig.get()
    job = Job(
        directory=_shown(Path(hydra_config.runtime.output_dir)),
        # as typed: `${` in them belongs to the config, not to Hydra's list of overrides
        overrides=tuple(OmegaConf.to_container(hydra_config.overrides.task, resolve=False)),
    )
    try:
        with _hydra_raises(False):
            return run_stages(_load(composed), job)
    except CosmosError as error:
        _discard_if_unused(job.directory)
        if hydra_config.mode is RunMode.MULTIRUN:
            raise
        # SystemExit passes through Hydra without its own report
        raise SystemExit(report(error)) from None


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
    """Remove what Hydra made for a job that was refused before it wrote anything."""
    log = directory / "run.log"
    is_empty = {entry.name for entry in directory.iterdir()} <= {".hydra", "run.log"}
    if is_empty and log.is_file() and log.stat().st_size == 0:
        log.unlink()
        shutil.rmtree(directory / ".hydra", ignore_errors=True)
        if directory.resolve() != Path.cwd():
            directory.rmdir()


def report(error: CosmosError) -> int:
    """Print an error the user can act on, one line a problem, and return its exit code."""
    for line in str(error).splitlines():
        sys.stderr.write(f"cosmos-hydra: {line}\n")
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
    sys.argv[1:] = quote_free_text(arguments)
    schema.register()
    OmegaConf.register_new_resolver("run_directory", run_directory, replace=True)
    entry = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
    try:
        refuse_null_groups(arguments)
        with _hydra_raises(True):
            entry(task)()
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(report(explain(error, arguments)))
    except CosmosError as error:
        sys.exit(report(error))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stderr.write("cosmos-hydra: interrupted; the same command goes on from here\n")
        sys.exit(INTERRUPTED)
