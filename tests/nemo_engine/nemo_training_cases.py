"""Training through NeMo's trainer with the CPU in the place of CUDA; imported by a rank itself."""

from pathlib import Path

import torch
from cpu_for_cuda import cpu_for_cuda
from small_runs import small_config

from cosmos_hydra.data.store import open_store
from cosmos_hydra.engines.nemo import trainer as nemo_trainer
from cosmos_hydra.engines.torch.mesh import join


def train(samples: Path, overrides: tuple[str, ...], run: Path) -> None:
    """Train to the end."""
    config = small_config(samples, "engine.name=nemo", "parallel.precision=fp32", *overrides)
    nemo_trainer.check_device = lambda device: None
    with cpu_for_cuda():
        ranks = join(config, torch.device("cpu"))
        nemo_trainer.Trainer(config, run, open_store(config.data.path), ranks).train()
