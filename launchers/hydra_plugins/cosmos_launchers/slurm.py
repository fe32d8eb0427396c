"""launch=slurm: jobs of one or several nodes, submitted from a login node, all of a sweep at once.

The command waits, shows what rank 0 prints, and ends as the job does; Ctrl-C leaves it running.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf, open_dict

from hydra_plugins.cosmos_launchers._jobs import INTERRUPTED_CODE
from hydra_plugins.cosmos_launchers._launch import RankLauncher, directory_of, label, state
from hydra_plugins.cosmos_launchers._queue import Submitted

if TYPE_CHECKING:
    from hydra_plugins.cosmos_launchers._node import Asked

WAIT_S = 0.5
AGAIN_S = 5.0
# of submitit's files, in the folder of the sweep or in logs/ of the run
FOLDER = "slurm"


class SlurmLauncher(RankLauncher):
    """Submit jobs, wait for them, and say what each came to."""

    def __init__(self, **fields: Any) -> None:
        self.fields = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in fields.items()
        }

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Submit the jobs, wait, and return what each came to, in order.

        Raises: SystemExit or KeyboardInterrupt when a signal ended it, or the only job failed.
        """
        from submitit.core.utils import FailedJobError

        from hydra_plugins.cosmos_launchers import _payload, _sbatch
        from hydra_plugins.cosmos_launchers._node import noting_signals

        self.begin(job_overrides)
        configs = [self.composed(o, n) for n, o in enumerate(job_overrides, initial_job_idx)]
        base = directory_of(configs[0]) / "logs" if self.is_single else self.folder.absolute()
        folder = base / FOLDER
        name = f"{self.name}-{base.parent.name}"
        problems = list(_sbatch.problems(self.fields, folder))
        if problems:
            self.refuse(*problems)
        if self.fields["dry_run"]:
            sys.stdout.write(self._shown(_sbatch.script(self.fields, name, folder, len(configs))))
            raise SystemExit(0)
        if not shutil.which("sbatch"):
            self.refuse(
                "launch=slurm needs sbatch on PATH, none found; use launch=torchrun on a single "
                "host"
            )
        jobs = [self._prepare(c, o) for c, o in zip(configs, job_overrides, strict=True)]
        with noting_signals() as asked:
            try:
                self._submit(jobs, _sbatch.executor(self.fields, name, folder))
            except FailedJobError as error:
                for job in jobs:
                    _payload.remove(job.folder)
                why = " ".join(str(error).split())
                sys.stderr.write(f"{self.name}: sbatch did not take the job; {why}\n")
                raise SystemExit(1) from None
            self._wait(jobs, asked)
        return self._collect(jobs)

    def _prepare(self, config: DictConfig, overrides: Sequence[str]) -> Submitted:
        from hydra_plugins.cosmos_launchers import _payload, _sbatch

        directory, fields = directory_of(config), self.fields
        with open_dict(config):
            config.hydra.runtime.output_dir = str(directory)
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)
        payload = _payload.Payload(
            task_function=self.task_function,
            config=OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]),
            state=state(),
            directory=directory,
            working_directory=Path.cwd(),
            nodes=fields["nodes"],
            nproc_per_node=_sbatch.ranks_per_node(fields),
            port=fields["port"],
            timeout_s=fields["timeout_s"],
            stop_s=fields["stop_s"],
            max_requeues=fields["max_requeues"],
        )
        HydraConfig.instance().cfg = before
        folder = _payload.create(payload)
        return Submitted(config.hydra.job.num, overrides, config, directory, folder)

    def _submit(self, jobs: list[Submitted], executor: Any) -> None:
        from submitit.helpers import clean_env

        from hydra_plugins.cosmos_launchers._process import environment
        from hydra_plugins.cosmos_launchers._task import Task

        kept = {key: os.environ[key] for key in ("SLURM_CONF",) if key in os.environ}
        if not self.fields["python"] and not self.fields["container_image"]:
            kept["PYTHONPATH"] = environment()["PYTHONPATH"]
        before = dict(os.environ)
        executor.folder.mkdir(parents=True, exist_ok=True)
        tasks = [Task(job.folder, job.config) for job in jobs]
        try:
            # inside an allocation its variables would pass for those of the new job
            with clean_env():
                os.environ.update(kept)
                with executor.batch():
                    handles = [executor.submit(task) for task in tasks]
        finally:
            os.environ.clear()
            os.environ.update(before)
        for job, handle in zip(jobs, handles, strict=True):
            job.job = str(handle.job_id)
            self._say(f"#{job.number} : {label(job.overrides)}: Slurm job {job.job}")

    def _wait(self, jobs: list[Submitted], asked: "Asked") -> None:
        from hydra_plugins.cosmos_launchers import _payload, _queue, _result
        from hydra_plugins.cosmos_launchers._node import Follower

        follower = None
        if self.is_single:
            follower = Follower([_result.log_of(jobs[0].directory / "logs", 0)])
        looked_s = 0.0
        while waiting := [job for job in jobs if job.result is None]:
            time.sleep(WAIT_S)
            for job in waiting:
                job.result = _result.read(job.folder / _payload.RESULT)
            if follower:
                follower.look()
            if asked.first is not None:
                self._leave(waiting, asked)
            if time.monotonic() - looked_s > self.fields["poll_s"]:
                looked_s = time.monotonic()
                states = _queue.states([job.job for job in waiting])
                for job in waiting if states is not None else ():
                    self._miss(job, (states or {}).get(job.job))

    def _miss(self, job: Submitted, queued: str | None) -> None:
        """Call a job lost that has left no result for a while since the queue let go of it."""
        from hydra_plugins.cosmos_launchers import _payload, _queue, _result

        if job.result is not None or queued in _queue.ALIVE:
            job.gone_s = None
            return
        job.gone_s = job.gone_s or time.monotonic()
        if time.monotonic() - job.gone_s < self.fields["lost_s"]:
            return
        stopped = _result.read(job.folder / _payload.STOPPED)
        if stopped is not None:  # it saved, and will not be run again
            error = f"{stopped.error}; Slurm job {job.job} is {queued or 'gone'}"
            job.result = replace(stopped, error=error)
            return
        how = f"is {queued}" if queued else "is not known to Slurm any more"
        log = self._log_of(job)
        error = f"Slurm job {job.job} {how} and has left no result; see {_result.shown(log)}"
        job.result = _result.Result(_result.LOST, error=error, exit_code=1)

    def _log_of(self, job: Submitted) -> Path:
        base = job.directory / "logs" if self.is_single else self.folder
        return base / FOLDER / f"{job.job}_0_log.out"

    def _leave(self, waiting: list[Submitted], asked: "Asked") -> None:
        """Leave the jobs to Slurm, or cancel them if asked once more; ends the program."""
        from hydra_plugins.cosmos_launchers import _queue

        ids = [job.job for job in waiting]
        names = " ".join(ids)
        if asked.first != signal.SIGINT:
            self._say(f"stopped waiting; still in Slurm: {names}")
            raise SystemExit(75)
        self._say(f"leaving Slurm jobs {names} to run; Ctrl-C again within 5 s cancels them")
        until_s = time.monotonic() + AGAIN_S
        while time.monotonic() < until_s and len(asked.numbers) < 2:
            time.sleep(0.1)
        if len(asked.numbers) > 1:
            _queue.cancel(ids)
            self._say(f"cancelled {names}")
        raise SystemExit(INTERRUPTED_CODE)

    def _collect(self, jobs: list[Submitted]) -> Sequence[JobReturn]:
        from hydra_plugins.cosmos_launchers import _payload, _result

        returns = []
        for job in jobs:
            assert job.result is not None
            _payload.remove(job.folder)
            self.keep(job.number, job.overrides, job.directory, job.result)
            known = JobReturn(
                overrides=OmegaConf.to_container(job.config.hydra.overrides.task, resolve=False),
                cfg=OmegaConf.masked_copy(job.config, [k for k in job.config if k != "hydra"]),
                hydra_cfg=OmegaConf.masked_copy(job.config, "hydra"),
                working_dir=str(job.directory),
                task_name=job.config.hydra.job.name,
            )
            returns.append(_result.job_return(job.result, known))
        self.end()
        return returns

    def _shown(self, script: str) -> str:
        worker = f"{__package__}._worker FOLDER PARENT"
        python = " ".join(self.fields["python"] or [sys.executable])
        return f"{script}\n# each rank: {python} -m {worker}\n"

    def _say(self, text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
