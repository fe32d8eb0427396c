"""Training through NeMo's trainer with the CPU in the place of CUDA; imported by a rank itself."""

import os
import signal
from pathlib import Path

import torch
from cpu_for_cuda import cpu_for_cuda, prepare_for_loading
from small_runs import small_config

from cosmos_hydra.data.loader import Batch
from cosmos_hydra.data.store import open_store
from cosmos_hydra.engines.nemo import trainer as nemo_trainer
from cosmos_hydra.engines.torch.mesh import join
from cosmos_hydra.errors import CosmosError


def train(samples: Path, overrides: tuple[str, ...], run: Path) -> None:
    """Train to the end."""
    config = small_config(samples, "engine.name=nemo", *overrides)
    nemo_trainer.check_device = lambda device: None
    prepare_for_loading()
    with cpu_for_cuda():
        ranks = join(config, torch.device("cpu"))
        nemo_trainer.Trainer(config, run, open_store(config.data.path), ranks).train()


def train_until_stopped(samples: Path, overrides: tuple[str, ...], run: Path) -> None:
    """Train, with a signal of preemption while the first step is made."""
    losses = nemo_trainer.CosmosModule.forward_step

    def stopped(self: nemo_trainer.CosmosModule, batch: Batch) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return losses(self, batch)

    nemo_trainer.CosmosModule.forward_step = stopped
    train_and_tell(samples, overrides, run)


def train_and_tell(samples: Path, overrides: tuple[str, ...], run: Path) -> None:
    """Train, and note why that ended."""
    try:
        train(samples, overrides, run)
    except CosmosError as error:
        (run / "said.txt").write_text(str(error))
