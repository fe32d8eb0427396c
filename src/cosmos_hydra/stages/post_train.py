"""post_train: samples to a trained model."""

import logging
from typing import Any

from cosmos_hydra.config import Config, Stage
from cosmos_hydra.data.readers import reading
from cosmos_hydra.data.store import SampleStore, open_store
from cosmos_hydra.engines.torch.device import pick_device
from cosmos_hydra.engines.torch.fit import check_memory
from cosmos_hydra.engines.torch.mesh import Ranks, join
from cosmos_hydra.engines.torch.trainer import Trainer
from cosmos_hydra.job import Job, command_line
from cosmos_hydra.tracking import metrics
from cosmos_hydra.tracking.pictures import draw_overview
from cosmos_hydra.tracking.report import write_report
from cosmos_hydra.tracking.run_facts import write_run_facts

logger = logging.getLogger(__name__)


def trainer_of(config: Config) -> Any:
    """Return the engine's class; NeMo is imported where it trains."""
    if config.engine.name == "nemo":
        from cosmos_hydra.engines.nemo.trainer import Trainer as NemoTrainer

        return NemoTrainer
    return Trainer


def run(config: Config, job: Job) -> float | None:
    """Train to trainer.max_steps and return the last validation loss; every rank takes part.

    A run that had finished before returns the loss of then.
    """
    ranks = join(config, pick_device(config.engine.device))
    ranks.decide(lambda: check_memory(config, ranks.device, Stage.post_train))
    store = ranks.decide(lambda: open_store(config.data.path))
    with reading(store.layout):
        return _train(config, job, store, ranks)


def _train(config: Config, job: Job, store: SampleStore, ranks: Ranks) -> float | None:
    trainer = trainer_of(config)(config, job.directory, store, ranks)
    if ranks.is_first:
        job.begin()
        write_run_facts(config, job, store, ranks.device, trainer.num_parameters)
    loss = trainer.train()
    if not ranks.is_first:
        return loss
    rows = metrics.read(job.directory / "metrics.jsonl")
    logger.info(metrics.summary(rows))
    picture = draw_overview(job.directory, rows)
    logger.info(f"picture: {picture}")
    if config.log.report:
        logger.info(f"report: {write_report(job.directory, config)}")
    if config.stage is Stage.post_train:
        suggested = command_line("stage=generate", f"checkpoint={job.directory}")
        logger.info(f"next: {suggested}")
    if loss is None:
        losses = [row["val_loss"] for row in rows if row.get("val_loss") is not None]
        return losses[-1] if losses else None
    return loss
