"""post_train: samples to a trained model."""

import logging

from cosmos_hydra.config import Config, Stage
from cosmos_hydra.data.store import open_store
from cosmos_hydra.engines.torch.device import pick_device
from cosmos_hydra.engines.torch.trainer import Trainer
from cosmos_hydra.job import Job
from cosmos_hydra.tracking import metrics
from cosmos_hydra.tracking.pictures import draw_overview

logger = logging.getLogger(__name__)


def run(config: Config, job: Job) -> float | None:
    """Train to trainer.max_steps and return the last validation loss."""
    device = pick_device(config.engine.device)
    trainer = Trainer(config, job.directory, open_store(config.data.path), device)
    loss = trainer.train()
    picture = draw_overview(job.directory, metrics.read(job.directory / "metrics.jsonl"))
    logger.info(f"picture: {picture}")
    if config.stage is Stage.post_train:
        logger.info(f"next: cosmos-hydra stage=generate checkpoint={job.directory}")
    return loss
