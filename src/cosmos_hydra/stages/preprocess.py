"""preprocess: raw videos to samples on disk."""

import logging

from cosmos_hydra.config import Config, Stage
from cosmos_hydra.data.clips import HELD_OUT, TRAIN
from cosmos_hydra.data.prepare import prepare
from cosmos_hydra.engines.torch.device import pick_device
from cosmos_hydra.engines.torch.team import gather_team
from cosmos_hydra.job import Job

logger = logging.getLogger(__name__)


def run(config: Config, job: Job) -> int:
    """Make the samples that data.path lacks and return their number; every rank takes part."""
    device = pick_device(config.engine.device)
    team = gather_team(device)
    # a run that also trains is begun by post_train, which may still refuse it
    begins_here = Stage.post_train not in config.stages
    store = prepare(config, device, job.begin if begins_here else lambda: None, team)
    train, held_out = len(store.splits[TRAIN]), len(store.splits[HELD_OUT])
    logger.info(f"samples: {store.layout.folder}, {train} to train on, {held_out} held out")
    if config.stage is Stage.preprocess:
        logger.info(f"next: {job.command(stage='post_train')}")
    return train + held_out
