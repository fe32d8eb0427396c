"""launch=local: the jobs of a sweep on this machine, one after the other.

Hydra's own launcher runs them in one process, which the first crash ends, and has no summary.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.cosmos_launchers._fork import Children, Ended, children
from hydra_plugins.cosmos_launchers._jobs import (
    INTERRUPTED_CODE,
    PREEMPTED_CODE,
    Failed,
    Job,
    JobError,
    compose_job,
)
from hydra_plugins.cosmos_launchers._summary import summarise


@dataclass
class LocalLauncherConf:
    _target_: str = "hydra_plugins.cosmos_launchers.local.LocalLauncher"


ConfigStore.instance().store(
    group="hydra/launcher", name="cosmos_local", node=LocalLauncherConf, provider="cosmos_hydra"
)


class LocalLauncher(Launcher):
    """Run each job in a process of its own, and sum up at the end."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config
        self.jobs: list[Job] = []  # of every batch so far
        self.began_s = time.monotonic()

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs and return what each came to, in order.

        Raises: SystemExit after the summary, when a signal has ended the sweep.
        """
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        folder = Path(str(self.config.hydra.sweep.dir))
        returns = []
        with children() as running:
            for number, overrides in enumerate(job_overrides, initial_job_idx):
                if not running.signal:
                    returns.append(self._run(running, number, overrides))
            summarise(folder, self.jobs, time.monotonic() - self.began_s)
        if running.signal:
            raise SystemExit(
                INTERRUPTED_CODE if running.signal.name == "SIGINT" else PREEMPTED_CODE
            )
        return returns

    def _run(self, running: Children, number: int, overrides: Sequence[str]) -> JobReturn:
        began_s = time.monotonic()
        # a task may have an attribute `redact`, which takes secrets out of what is stored
        redact = getattr(self.task_function, "redact", str)
        folder = Path(str(self.config.hydra.sweep.dir), str(number))
        result: JobReturn
        try:
            config = compose_job(self.hydra_context, self.config, overrides, number)
            folder = Path(str(config.hydra.sweep.dir), str(config.hydra.sweep.subdir))
            result = running.run(lambda: self._run_here(config))
        except Ended as ended:
            result = Failed.because(JobError(str(ended), ended.exit_code, is_lost=True))
        except Exception as error:
            if not hasattr(error, "exit_code"):
                raise
            result = Failed.because(JobError.of(error))
        why = result.error if isinstance(result, Failed) else None
        for line in str(why).splitlines() if why else ():
            sys.stderr.write(f"{self.config.hydra.job.name}: job {number}: {line}\n")
        job = Job(
            number=number,
            overrides=tuple(overrides),
            directory=folder,
            status=why.status if why else "ok",
            error=redact(why.line) if why else None,
            seconds=time.monotonic() - began_s,
            value=None if why else result.return_value,
            exit_code=why.exit_code if why else 0,
        )
        self.jobs.append(job)
        return result

    def _run_here(self, config: DictConfig) -> JobReturn:
        """Run a job in this process, which is its own."""
        result = run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        if result.status is JobStatus.COMPLETED:
            return result
        error = result._return_value
        if not hasattr(error, "exit_code"):  # nobody expected it
            sys.excepthook(type(error), error, error.__traceback__)
        return Failed(**{**vars(result), "_return_value": JobError.of(error)})
