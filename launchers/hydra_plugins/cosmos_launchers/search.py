"""The sweeper of sweep=lr_optuna: Optuna chooses the values from the results so far.

Not hydra-optuna-sweeper: that needs Optuna 2.10, which cannot open its study files with the
SQLAlchemy of today, takes classes by name from the config, and stops at a failed job or a NaN.
"""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import MISSING, DictConfig

from hydra_plugins.cosmos_launchers._jobs import exit_code, refuse_hopeless


@dataclass
class OptunaSweeperConf:
    _target_: str = "hydra_plugins.cosmos_launchers.search.OptunaSweeper"
    # values by key: tag(log,interval(1e-6,1e-3)), interval(0,1), range(1,5) or a,b,c
    params: dict[str, str] = field(default_factory=dict)
    # jobs of the study, those of earlier commands and failed ones among them
    trials: int = 12
    # jobs launched together; the next ones are chosen when all of them have ended
    batch: int = 1
    # the study, a journal of Optuna; an existing one goes on
    file: str = MISSING
    # seed of the choices
    seed: int = 0


ConfigStore.instance().store(
    group="hydra/sweeper", name="cosmos_optuna", node=OptunaSweeperConf, provider="cosmos_hydra"
)


class OptunaSweeper(Sweeper):
    """Search for the lowest value; ends the program when a job failed."""

    def __init__(
        self, params: dict[str, str], trials: int, batch: int, file: str, seed: int
    ) -> None:
        self.params, self.trials, self.batch = params, trials, batch
        self.file, self.seed = Path(file).expanduser(), seed

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        try:
            self.optuna: Any = importlib.import_module("optuna")
        except ImportError:
            raise HydraException(
                "sweep=lr_optuna needs Optuna; run: pip install 'cosmos-hydra[sweep]'"
            ) from None
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Launch batches until the study has its trials, and return what each job came to.

        Raises: what is wrong with any job's config; SystemExit 1 or 2 when a job failed.
        """
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        typed = [*(f"{key}={values}" for key, values in self.params.items()), *arguments]
        # of a key that is given twice the last one counts
        found = {item.get_key_element(): item for item in parser.parse_overrides(typed)}
        searched = {k: self._distribution(o) for k, o in found.items() if o.is_sweep_override()}
        fixed = {k: o.get_value_element_as_str() for k, o in found.items() if k not in searched}
        lowest = {k: d.low if hasattr(d, "low") else d.choices[0] for k, d in searched.items()}
        jobs = [_overrides(fixed, lowest)]
        refuse_hopeless(self.hydra_context, self.task_function, self.config, jobs)
        study = self._study()
        results: list[JobReturn] = []
        while (left := self.trials - _num_done(study)) > 0:
            trials = [study.ask(searched) for _ in range(min(left, self.batch))]
            jobs = [_overrides(fixed, trial.params) for trial in trials]
            batch = self.launcher.launch(jobs, initial_job_idx=len(results))
            for trial, job in zip(trials, batch, strict=True):
                self._tell(study, trial, job)
            results += batch
        self._say(study)
        code = exit_code(results)
        if code:
            sys.exit(code)
        return [results]

    def _distribution(self, override: Override) -> Any:
        kinds, values = self.optuna.distributions, override.value()
        if not isinstance(values, IntervalSweep):
            return kinds.CategoricalDistribution(list(override.sweep_string_iterator()))
        is_whole = isinstance(values.start, int) and isinstance(values.end, int)
        kind = kinds.IntDistribution if is_whole else kinds.FloatDistribution
        return kind(values.start, values.end, log="log" in values.tags)

    def _study(self) -> Any:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        journal = self.optuna.storages.journal.JournalFileBackend(str(self.file))
        study = self.optuna.create_study(
            study_name="sweep",
            storage=self.optuna.storages.JournalStorage(journal),
            load_if_exists=True,
        )
        # going on must not begin with the choices of the first time
        study.sampler = self.optuna.samplers.TPESampler(seed=self.seed + len(study.trials))
        return study

    def _tell(self, study: Any, trial: Any, job: JobReturn) -> None:
        value = job.return_value if job.status is JobStatus.COMPLETED else None
        if isinstance(value, float):
            study.tell(trial, value)
        else:
            study.tell(trial, state=self.optuna.trial.TrialState.FAIL)

    def _say(self, study: Any) -> None:
        done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
        text = f"study {self.file}: {_num_done(study)} trials, {len(done)} with a result"
        if done:
            values = " ".join(_overrides({}, study.best_params))
            text += f"; best {study.best_value:.4f} with {values}"
        sys.stdout.write(f"{text}; for more raise hydra.sweeper.trials={self.trials}\n")


def _num_done(study: Any) -> int:
    """Return the number of trials that ended; one that was interrupted is not among them."""
    return sum(trial.state.is_finished() for trial in study.trials)


def _overrides(*parts: dict[str, Any]) -> Sequence[str]:
    return [f"{key}={value}" for part in parts for key, value in part.items()]
