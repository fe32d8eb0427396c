"""plan: memory, time and disk of a run on GPUs that need not be here, from the config alone."""

import logging

from cosmos_hydra.config import Config
from cosmos_hydra.engines.torch import planning
from cosmos_hydra.job import Job

logger = logging.getLogger(__name__)


def run(config: Config, job: Job) -> None:
    """Print whether training and generation fit plan.gpu, what a step takes, and what disks need.

    Raises: ConfigError when the degrees or the batch do not divide.
    """
    for line in planning.lines_of(config):
        logger.info(line)
