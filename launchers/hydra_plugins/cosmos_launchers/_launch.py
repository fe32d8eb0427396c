"""What both launchers do with every job: its config, its folder, what is said of its end."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.singleton import Singleton
from hydra.core.utils import configure_log, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from hydra_plugins.cosmos_launchers._jobs import CONFIG_CODE, INTERRUPTED_CODE, Job, compose_job
from hydra_plugins.cosmos_launchers._result import OK, Result, job_error
from hydra_plugins.cosmos_launchers._summary import summarise

# hydra.sweep.subdir of a command that is not a sweep
SINGLE = "."


class RankLauncher(Launcher):
    """Runs jobs on several ranks each; the launchers say how."""

    # what hydra.launcher.* said
    fields: dict[str, Any]

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config
        self.jobs: list[Job] = []  # of every batch so far
        self.began_s = time.monotonic()

    @property
    def name(self) -> str:
        """Return the program's name, for messages."""
        return str(self.config.hydra.job.name)

    @property
    def folder(self) -> Path:
        """Return the folder of the sweep, or of the only job."""
        return Path(str(self.config.hydra.sweep.dir)).expanduser()

    @property
    def is_single(self) -> bool:
        return str(OmegaConf.to_container(self.config.hydra.sweep)["subdir"]) == SINGLE

    def begin(self, job_overrides: Sequence[Sequence[str]]) -> None:
        """Prepare a batch; ends the program where it cannot be run."""
        if self.is_single and len(job_overrides) > 1:
            self.refuse("several values make several jobs; add -m to run a job for each")
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        if self.is_single:  # it is Hydra's record of a sweep
            (self.folder / "multirun.yaml").unlink(missing_ok=True)

    def refuse(self, *problems: str) -> NoReturn:
        """End the program because of its config."""
        for problem in problems:
            sys.stderr.write(f"{self.name}: {problem}\n")
        raise SystemExit(CONFIG_CODE)

    def composed(self, overrides: Sequence[str], number: int) -> DictConfig:
        """Return the config of a job, its place resolved once and for all."""
        config = compose_job(self.hydra_context, self.config, overrides, number)
        with open_dict(config):
            # ranks, and a job that is put back into the queue, must not look again
            config.hydra.sweep.dir = os.path.abspath(str(self.folder))  # noqa: PTH100 (no links)
            config.hydra.sweep.subdir = str(config.hydra.sweep.subdir)
        return config

    def keep(self, number: int, overrides: Sequence[str], directory: Path, result: Result) -> None:
        """Note what a job came to, and say it where that is not good."""
        # a task may have an attribute `redact`, which takes secrets out of what is stored
        redact = getattr(self.task_function, "redact", str)
        error = None if result.status == OK else redact(job_error(result).line)
        about = (result.status, error, result.seconds, result.value, result.exit_code)
        self.jobs.append(Job(number, tuple(overrides), directory, *about))
        is_obvious = result.exit_code == INTERRUPTED_CODE and self.is_single
        if result.status == OK or is_obvious:
            return
        which = "" if self.is_single else f"job {number}: "
        for line in (result.error or result.status).splitlines():
            sys.stderr.write(f"{self.name}: {which}{line}\n")

    def end(self) -> None:
        """Sum up a sweep; ends the program with the exit code of a single job that failed."""
        if not self.is_single:
            summarise(self.folder, self.jobs, time.monotonic() - self.began_s)
            return
        code = self.jobs[-1].exit_code
        if code == INTERRUPTED_CODE:
            raise KeyboardInterrupt
        if code:
            raise SystemExit(code)


def label(overrides: Sequence[str]) -> str:
    """Return the overrides of a job in one line."""
    return " ".join(filter_overrides(list(overrides)))


def directory_of(config: DictConfig) -> Path:
    """Return where a composed job writes; absolute."""
    return Path(os.path.normpath(Path(config.hydra.sweep.dir, config.hydra.sweep.subdir)))


def state() -> Any:
    """Return what another process needs to be like this one for Hydra."""
    return Singleton.get_state()
