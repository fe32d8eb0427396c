"""launch=torchrun: several ranks on this machine, one command and one run directory.

The jobs of a sweep run one after the other.
"""

import logging
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, run_job
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.cosmos_launchers._jobs import CONFIG_CODE
from hydra_plugins.cosmos_launchers._launch import (
    RankLauncher,
    directory_of,
    label,
    state,
)

if TYPE_CHECKING:
    from hydra_plugins.cosmos_launchers._node import Asked

logger = logging.getLogger(__name__)


class TorchrunLauncher(RankLauncher):
    """Start the ranks of a job under torch's elastic agent and wait for them."""

    def __init__(self, **fields: Any) -> None:
        self.fields = dict(fields)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs and return what each came to, in order.

        Raises: SystemExit or KeyboardInterrupt when a signal ended it, or the only job failed.
        """
        from hydra_plugins.cosmos_launchers._node import noting_signals

        self.begin(job_overrides)
        self._check()
        returns = []
        with noting_signals() as asked:
            for number, overrides in enumerate(job_overrides, initial_job_idx):
                config = self.composed(overrides, number)
                if self.fields["dry_run"]:
                    self._show(config)
                elif asked.first is None:
                    logger.info(f"#{number} : {label(overrides)}")
                    returns.append(self._run(config, number, overrides, asked))
        if self.fields["dry_run"]:
            raise SystemExit(0)
        self.end()
        if asked.first == signal.SIGINT:
            raise KeyboardInterrupt
        if asked.first is not None:
            raise SystemExit(75)
        return returns

    def _check(self) -> None:
        text = str(self.fields["nproc_per_node"])
        if text != "auto" and not (text.isdecimal() and int(text) > 0):
            self.refuse(
                f"hydra.launcher.nproc_per_node={text} is no number of ranks; auto, or at least 1"
            )

    def _run(
        self, config: DictConfig, number: int, overrides: Sequence[str], asked: "Asked"
    ) -> JobReturn:
        from hydra_plugins.cosmos_launchers import _payload, _result
        from hydra_plugins.cosmos_launchers._node import Follower, run_agent

        directory, began_s = directory_of(config), time.time()
        found: list[_result.Result] = []

        def run_ranks(task_config: DictConfig) -> None:
            payload = _payload.Payload(
                task_function=self.task_function,
                config=task_config,
                state=state(),
                directory=directory,
                working_directory=Path.cwd(),
                nodes=1,
                nproc_per_node=str(self.fields["nproc_per_node"]),
                port=None,
                timeout_s=600,
                stop_s=self.fields["stop_s"],
            )
            folder = _payload.create(payload)
            tee = OmegaConf.to_container(OmegaConf.create(list(self.fields["tee_ranks"])))
            shown = Follower([_result.log_of(payload.logs, rank) for rank in tee])
            try:
                code = run_agent(folder, payload, asked, look=shown.look)
                shown.look()
                result = _result.decide(folder, payload.logs, began_s)
                if code < 0 and result.status != _result.OK:
                    error = f"the agent of the ranks was {_result.death(code)}"
                    result = _result.Result(_result.LOST, error=error, exit_code=1)
            finally:
                _payload.remove(folder)
            found.append(result)

        before = logs_in(directory)
        hydra_return = run_job(
            hydra_context=self.hydra_context,
            task_function=run_ranks,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        if not found:  # of this launcher's own
            _ = hydra_return.return_value
        [result] = found
        if result.exit_code == CONFIG_CODE:
            discard(directory, before)
        self.keep(number, overrides, directory, result)
        return _result.job_return(result, hydra_return)

    def _show(self, config: DictConfig) -> None:
        ranks = self.fields["nproc_per_node"]
        task = [
            override
            for override in OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
            if not str(override).startswith(("launch=", "launch.dry_run="))
        ]
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            f"--nproc_per_node={'gpu' if ranks == 'auto' else ranks}",
            *("-m", str(self.task_function.__module__).rpartition(".")[0] or "__main__"),
            *map(str, task),
            f"hydra.run.dir={directory_of(config)}",
        ]
        sys.stdout.write(shlex.join(command) + "\n")


def logs_in(directory: Path) -> set[Path]:
    """Return the log files that a run has."""
    return set((directory / "logs").glob("*.log"))


def discard(directory: Path, before: set[Path]) -> None:
    """Remove the logs of a job that was refused, and its folder if nothing else is in it."""
    for log in logs_in(directory) - before:
        log.unlink()
    here = Path.cwd()
    folder = directory / "logs"
    while folder.is_dir() and folder != here and not any(folder.iterdir()):
        folder.rmdir()
        if here not in folder.parents:
            return
        folder = folder.parent
