"""The sweeper of `-m` and `sweep=lr`: every combination of the values, all in one batch.

Hydra's own leaves multirun.yaml of a sweep that is then refused, and ends in a traceback when a
job has failed.
"""

import sys
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.cosmos_launchers._jobs import exit_code, refuse_hopeless


@dataclass
class GridSweeperConf:
    _target_: str = "hydra_plugins.cosmos_launchers.grid.GridSweeper"
    # values by key, as one types them behind `key=`
    params: dict[str, str] = field(default_factory=dict)


ConfigStore.instance().store(
    group="hydra/sweeper", name="cosmos_grid", node=GridSweeperConf, provider="cosmos_hydra"
)


class GridSweeper(Sweeper):
    """Launch a job for each combination; ends the program when one of them failed."""

    def __init__(self, params: dict[str, str]) -> None:
        self.params = params

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs and return what each came to.

        Raises: what is wrong with the config of every job; SystemExit 1, or 2 if all that failed
        have a wrong config.
        """
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        typed = [*(f"{key}={values}" for key, values in self.params.items()), *arguments]
        [jobs] = BasicSweeper.split_arguments(parser.parse_overrides(typed), None)
        refuse_hopeless(self.hydra_context, self.task_function, self.config, jobs)
        results = self.launcher.launch(jobs, initial_job_idx=0)
        code = exit_code(results)
        if code:
            sys.exit(code)
        return [results]
