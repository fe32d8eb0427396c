"""report: make report.html of a run, or sweep.html of a sweep, from what lies in its directory."""

import logging
from pathlib import Path

from cosmos_hydra.config import Config
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.job import Job
from cosmos_hydra.tracking.report import write_report
from cosmos_hydra.tracking.report_sweep import is_sweep, write_sweep_report

TRACES = ("run.json", "metrics.jsonl", "checkpoints", "previews")
logger = logging.getLogger(__name__)


def run(config: Config, job: Job) -> Path:
    """Write the report and return its path.

    Raises: ConfigError when the given checkpoint is no run.
    """
    run = job.directory
    if is_sweep(run):
        path = write_sweep_report(run)
        logger.info(f"report: {path}")
        return path
    if config.checkpoint and not any((run / trace).exists() for trace in TRACES):
        raise ConfigError(f"checkpoint={config.checkpoint} is no run, step or sweep")
    path = write_report(run, config)
    logger.info(f"report: {path}")
    return path
