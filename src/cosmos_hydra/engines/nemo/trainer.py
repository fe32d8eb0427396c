"""Post-training through NeMo's trainer: the run directory, rows and samples of the torch engine.

NeMo's trainer makes the steps; what a run reports, evaluates and saves hangs on callbacks.py.
"""

import logging
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import nemo.lightning as nl
import torch

from cosmos_hydra.config import Config, TokenizerKind
from cosmos_hydra.data.clips import HELD_OUT, TRAIN
from cosmos_hydra.data.loader import Loader
from cosmos_hydra.data.store import SampleStore
from cosmos_hydra.engines.nemo import settings
from cosmos_hydra.engines.nemo.architecture import transformer_config
from cosmos_hydra.engines.nemo.callbacks import Look, Preemption
from cosmos_hydra.engines.nemo.limits import INSTALL_TE, TRANSFORMER_ENGINE, is_installed
from cosmos_hydra.engines.nemo.module import CosmosModule, Samples
from cosmos_hydra.engines.nemo.saving import NEMO
from cosmos_hydra.engines.nemo.sizes import check_batch, check_fp8
from cosmos_hydra.engines.nemo.transformer import MegatronTransformer
from cosmos_hydra.engines.nemo.weights import fill, shapes_of
from cosmos_hydra.engines.torch import checkpoint
from cosmos_hydra.engines.torch.mesh import Ranks
from cosmos_hydra.engines.torch.start import check_samples, plan_start
from cosmos_hydra.errors import ConfigError, Preempted
from cosmos_hydra.logs import progress
from cosmos_hydra.models.size import parameter_count
from cosmos_hydra.models.transformer import initial
from cosmos_hydra.place import local_rank
from cosmos_hydra.signals import stop_on_request
from cosmos_hydra.weights.open import open_weights

BYTES_PER_PARAMETER = 2 + 2 + 3 * 4  # weights twice, Adam's weights and two moments
logger = logging.getLogger(__name__)


class Trainer:
    """One run; `train` does the work."""

    def __init__(self, config: Config, run: Path, store: SampleStore, ranks: Ranks) -> None:
        check_device(ranks.device)
        check_batch(config, ranks.degrees)
        check_fp8(config, ranks.degrees)
        if not is_installed(TRANSFORMER_ENGINE):
            logger.warning(
                f"{TRANSFORMER_ENGINE} is not installed: linear layers and attention are "
                f"PyTorch's; run: {INSTALL_TE}"
            )
        torch.cuda.set_device(ranks.device.index or 0)  # where Megatron makes all it makes
        self.config, self.run, self.store, self.ranks = config, run, store, ranks
        self.fps = check_samples(config, store)
        self.start = ranks.decide(lambda: plan_start(config, run, store))
        found = self.start.checkpoint
        self.resumed = found.folder / NEMO if found else None
        self.step = found.step if found else 0
        architecture = transformer_config(config, ranks.degrees, ranks.device)
        optim = settings.optimizer(config)
        self.module = CosmosModule(config, architecture, ranks, optim, self._fill)
        fitted = store.fitted_tokenizer
        is_toy = config.model.tokenizer.kind is TokenizerKind.toy
        self.fitted_tokenizer = fitted if is_toy and fitted.is_file() else None

    @property
    def num_parameters(self) -> int:
        return parameter_count(self.config.model)

    def train(self) -> float | None:
        """Run to trainer.max_steps and return the last validation loss.

        Raises: KeyboardInterrupt or Preempted after saving; StageError where a step is not finite.
        """
        config, ranks, last = self.config, self.ranks, self.config.trainer.max_steps
        if self.step >= last:
            logger.info(
                f"{self.run} has finished at step {self.step}; "
                f"raise trainer.max_steps, or use resume.mode=fresh"
            )
            return None
        if ranks.is_first:
            checkpoint.remove_leftovers(self.run)
            checkpoint.check_space(self.run, BYTES_PER_PARAMETER * self.num_parameters)
        logger.info(
            f"{config.model.name}: {self.num_parameters / 1e6:.1f} M parameters on {ranks} with "
            f"engine=nemo; run {self.run}, steps {self.step} to {last}"
        )
        counts = {split: len(self.store.splits[split]) for split in (TRAIN, HELD_OUT)}
        logger.info(
            f"data: {config.data.path}, {counts[TRAIN]} samples to train on, "
            f"{counts[HELD_OUT]} held out; {config.trainer.global_batch_size} a step"
        )
        with stop_on_request() as stop, self._progress() as bar:
            look = Look(self, bar)
            samples = Samples(config, look.loader, self.step, ranks)
            look.passes = samples.passes
            trainer = build_trainer(config, self.run, ranks, [look, Preemption(ranks, stop)])
            nl.AutoResume(resume_from_path=self.resumed and str(self.resumed)).setup(trainer)
            try:
                trainer.fit(self.module, samples)
            finally:
                look.record.close()
        if stop.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if stop:
            raise Preempted(
                f"stopped by a signal at step {look.step} of {self.run}; "
                f"the same command goes on from there"
            )
        return look.looks.last_loss

    def _progress(self) -> AbstractContextManager[Any]:
        return progress("post_train", self.config.trainer.max_steps, "steps", start=self.step)

    def loader(self) -> Loader:
        """Return what loads this rank's part of each step."""
        trainer = self.config.trainer
        return Loader(
            self.store,
            self.store.splits[TRAIN],
            self.config.model.objective,
            self.config.seed,
            trainer.global_batch_size,
            trainer.micro_batch_size,
            (self.ranks.dp_rank, self.ranks.degrees.dp),
        )

    def _fill(self, network: MegatronTransformer) -> None:
        """Give the network its first weights; those of a checkpoint come through NeMo."""
        config, shapes = self.config, shapes_of(self.config.model)
        weights = self.start.weights
        if self.start.checkpoint is not None:
            return
        if weights is None:
            logger.info("starting from random weights")
            fill(network, config.model.head_dim, lambda n: initial(n, shapes[n], config.seed))
        else:
            source = open_weights(weights, shapes, config.model.weights.path)
            fill(network, config.model.head_dim, source.read)
            logger.info(f"starting from {weights} (sha256 {weights.digest[:12]})")


def check_device(device: torch.device) -> None:
    """Raise ConfigError unless Megatron's training runs there."""
    if device.type != "cuda":
        raise ConfigError(
            f"engine.name=nemo trains on CUDA devices, not on {device}; use engine=torch"
        )


def build_trainer(config: Config, run: Path, ranks: Ranks, callbacks: list[Any]) -> nl.Trainer:
    """Return NeMo's trainer for a config; its logger writes into the run directory."""
    per_host = 1 + max(ranks.gather(local_rank()))
    is_single_gpu = ranks.size == 1 and ranks.device.type == "cuda"
    trainer = nl.Trainer(
        accelerator=ranks.device.type,
        devices=[ranks.device.index or 0] if is_single_gpu else per_host,
        num_nodes=ranks.size // per_host,
        strategy=settings.strategy(config, ranks.degrees),
        plugins=settings.precision(config),
        max_steps=config.trainer.max_steps,
        logger=False,
        log_every_n_steps=config.log.every,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # not as an argument: NeMo would copy their open files
    trainer.callbacks.extend(callbacks)
    logs = str(run / "nemo_log")
    nl.NeMoLogger(explicit_log_dir=logs, log_global_rank_0_only=True).setup(trainer)
    return trainer
