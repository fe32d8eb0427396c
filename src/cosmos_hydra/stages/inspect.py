"""inspect: what data.source holds and what settings would keep of it; makes no samples."""

import logging

from cosmos_hydra.config import Config
from cosmos_hydra.data import lookalikes, sources, survey
from cosmos_hydra.data.inventory import look
from cosmos_hydra.errors import StageError
from cosmos_hydra.job import Job

logger = logging.getLogger(__name__)


def run(config: Config, job: Job) -> None:
    """Print figures of the source, a table of clip lengths, and videos that look the same.

    Raises: StageError when no video can be read.
    """
    data = config.data
    inventory = look(sources.find(data))
    logger.info(inventory.summary())
    if not inventory.episodes:
        raise StageError(f"data.source={data.source} holds no video that can be read")
    for line in survey.lines_of(inventory, config):
        logger.info(line)
    for line in lookalikes.lines_of(inventory, data):
        logger.info(line)
