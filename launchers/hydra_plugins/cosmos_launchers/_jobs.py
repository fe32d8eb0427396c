"""Jobs of a sweep as Hydra knows them: their configs, and how they report a failure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

# exit codes: Ctrl-C, saved and wants to go on (EX_TEMPFAIL), a wrong config
INTERRUPTED_CODE, PREEMPTED_CODE, CONFIG_CODE = 130, 75, 2


@dataclass(frozen=True)
class Job:
    """What a launcher knows of a job that has ended."""

    number: int
    # as the sweeper gave them, key=value
    overrides: Sequence[str]
    directory: Path
    # ok, failed, preempted, or lost (ended without a word)
    status: str
    # why, in one line; None if ok
    error: str | None
    seconds: float
    # what the task returned
    value: Any = None
    # of its process; 2 = its config is wrong
    exit_code: int = 1


class JobError(Exception):
    """Why a job has no result; all that other processes get to know of an error."""

    def __init__(self, text: str, exit_code: int = 1, is_lost: bool = False) -> None:
        super().__init__(text, exit_code, is_lost)
        self.text, self.exit_code, self.is_lost = text, exit_code, is_lost

    @classmethod
    def of(cls, error: BaseException) -> "JobError":
        """Return an error in words: those with an exit code speak for themselves."""
        if hasattr(error, "exit_code"):
            return cls(str(error), error.exit_code)
        first = (str(error).splitlines() or [""])[0]
        return cls(f"{type(error).__name__}: {first}".rstrip(": "))

    def __str__(self) -> str:
        return self.text

    @property
    def line(self) -> str:
        """Return the first line, and how many there are."""
        first, *others = self.text.splitlines() or [""]
        return f"{first} (and {len(others)} more)" if others else first

    @property
    def status(self) -> str:
        """Return preempted, lost (its process ended without a word) or failed."""
        if self.exit_code in (INTERRUPTED_CODE, PREEMPTED_CODE):
            return "preempted"
        return "lost" if self.is_lost else "failed"


class Failed(JobReturn):
    """A failed job: its value raises, as that of Hydra's own, but prints nothing."""

    @classmethod
    def because(cls, error: JobError) -> "Failed":
        """Return a job without a result."""
        return cls(status=JobStatus.FAILED, _return_value=error)

    @property
    def error(self) -> JobError:
        assert isinstance(self._return_value, JobError)
        return self._return_value

    @property
    def return_value(self) -> NoReturn:
        raise self.error


def compose_job(
    context: HydraContext, config: DictConfig, overrides: Sequence[str], number: int
) -> DictConfig:
    """Return the config of a job."""
    composed = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(composed):
        composed.hydra.job.id = str(number)
        composed.hydra.job.num = number
    return composed


def refuse_hopeless(
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
    jobs: Sequence[Sequence[str]],
) -> None:
    """Raise what is wrong where no job can begin: each problem once, and before anything starts.

    Config errors are those with an exit code of 2. A task may have an attribute `check`, a function
    of a config that raises them.
    """
    setup_globals()
    check: Callable[[DictConfig], Any] = getattr(task, "check", lambda composed: None)
    problems: dict[str, None] = {}
    for number, overrides in enumerate(jobs):
        before = HydraConfig.instance().cfg
        try:
            composed = compose_job(context, config, overrides, number)
            HydraConfig.instance().set_config(composed)
            check(OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"]))
        except Exception as error:
            if getattr(error, "exit_code", None) != CONFIG_CODE:
                raise
            problems |= dict.fromkeys(str(error).splitlines())
            kind = type(error)
        else:
            return
        finally:
            HydraConfig.instance().cfg = before
    raise kind(*problems)


def exit_code(results: Sequence[JobReturn]) -> int:
    """Return the exit code of a sweep: 2 if all that failed have a wrong config, else 1; or 0."""
    failures = [job._return_value for job in results if job.status is JobStatus.FAILED]
    codes = {getattr(failure, "exit_code", 1) for failure in failures}
    return 0 if not codes else CONFIG_CODE if codes == {CONFIG_CODE} else 1
