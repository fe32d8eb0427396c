"""Post-training through NeMo's trainer: the run directory, rows and samples of the torch engine.

NeMo's trainer makes the steps; what a run reports, evaluates and saves hangs on its callbacks.
"""

import logging
import math
import signal
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import nemo.lightning as nl
import torch
from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback
from nemo.lightning.pytorch.callbacks import PreemptionCallback

from cosmos_hydra.config import Config, TokenizerKind
from cosmos_hydra.data.clips import HELD_OUT, TRAIN
from cosmos_hydra.data.loader import Loader
from cosmos_hydra.data.store import SampleStore
from cosmos_hydra.engines.nemo import settings
from cosmos_hydra.engines.nemo.architecture import transformer_config
from cosmos_hydra.engines.nemo.limits import INSTALL_TE, TRANSFORMER_ENGINE, is_installed
from cosmos_hydra.engines.nemo.module import CosmosModule, Passes, Samples
from cosmos_hydra.engines.nemo.saving import NEMO, NemoSaver, weights_for_rank_0
from cosmos_hydra.engines.nemo.transformer import MegatronTransformer
from cosmos_hydra.engines.nemo.weights import fill, shapes_of
from cosmos_hydra.engines.torch import checkpoint
from cosmos_hydra.engines.torch.mesh import Ranks
from cosmos_hydra.engines.torch.optimizer import learning_rate
from cosmos_hydra.engines.torch.previews import Previews, remove_previews_after
from cosmos_hydra.engines.torch.saving import facts_of
from cosmos_hydra.engines.torch.start import check_samples, plan_start
from cosmos_hydra.engines.torch.usage import peak_memory_gb
from cosmos_hydra.engines.torch.validation import Validation
from cosmos_hydra.errors import ConfigError, Preempted, StageError
from cosmos_hydra.logs import progress
from cosmos_hydra.models.size import parameter_count
from cosmos_hydra.models.transformer import evaluating, initial
from cosmos_hydra.place import local_rank
from cosmos_hydra.signals import STOPPING, StopRequest, stop_on_request
from cosmos_hydra.tracking.record import Record
from cosmos_hydra.weights.open import open_weights

BYTES_PER_PARAMETER = 2 + 2 + 3 * 4  # weights twice, Adam's weights and two moments
Row = dict[str, Any]
logger = logging.getLogger(__name__)


class Trainer:
    """One run; `train` does the work."""

    def __init__(self, config: Config, run: Path, store: SampleStore, ranks: Ranks) -> None:
        check_device(ranks.device)
        check_batch(config, ranks.degrees.dp)
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
        fitted = store.layout.tokenizer
        is_toy = config.model.tokenizer.kind is TokenizerKind.toy
        self.fitted_tokenizer = fitted if is_toy and fitted.is_file() else None

    @property
    def num_parameters(self) -> int:
        return parameter_count(self.config.model)

    def train(self) -> float | None:
        """Run to trainer.max_steps and return the last validation loss.

        A checkpoint is on disk whichever way this ends.
        Raises: KeyboardInterrupt or Preempted after saving.
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
            look = Look(self, stop, bar)
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
        return look.last_loss

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


class Preemption(PreemptionCallback):
    """NeMo's, with the signals and the agreement between ranks of this project."""

    def __init__(self, ranks: Ranks, stop: StopRequest) -> None:
        super().__init__()
        self.ranks, self.stop = ranks, stop

    @property
    def preemption_supported(self) -> bool:
        """Return that NeMo's handler, of one signal, is not wanted."""
        return False

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Handle the signals; Lightning has taken them for itself, and gives them back."""
        for number in STOPPING:
            signal.signal(number, self.stop.handle)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Have the run end after this step; the end saves."""
        if self.ranks.any(bool(self.stop)):
            trainer.should_stop = True


class Look(CheckpointCallback):
    """After each step: its row, and a validation, a preview or a checkpoint where one is due."""

    passes: Passes

    def __init__(self, owner: Trainer, stop: StopRequest, bar: Any) -> None:
        self.owner, self.stop, self.bar = owner, stop, bar
        self.loader = owner.loader()
        self.config, self.ranks, self.step = owner.config, owner.ranks, owner.step
        if self.ranks.is_first:
            self.ranks.wait()  # rank 0 last: it cuts what the others read
        self.record = Record(self.config, owner.run, self.step, self.ranks.is_first)
        if not self.ranks.is_first:
            self.ranks.wait()
        self.saved_step = self.step
        self.last_loss: float | None = None
        self.saver = NemoSaver(
            owner.run,
            self.ranks,
            self.config.model,
            self.config.trainer.keep,
            owner.fitted_tokenizer,
        )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Prepare what the steps are measured with."""
        config, store = self.config, self.owner.store
        self.saver.trainer = trainer
        self.validation = Validation(config, store) if config.trainer.validate_every else None
        self.previews = None
        if self.ranks.is_first:
            remove_previews_after(self.owner.run, self.step)
        can_decode = self.owner.fitted_tokenizer or config.model.tokenizer.path
        if config.trainer.preview_every and can_decode:
            self.previews = Previews(config, store, self.owner.run, store.layout.tokenizer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: CosmosModule) -> None:
        """Look at the weights that the run begins with."""
        if self.step == 0:
            self._evaluate(pl_module)
        self.began_s = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the step, and do what is due."""
        self.step += 1
        self._note(trainer, pl_module, time.perf_counter() - self.began_s)
        self._evaluate(pl_module)
        every = self.config.trainer.save_every
        if every and self.step % every == 0:
            self._save(pl_module)
        self.began_s = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Save the last step."""
        if self.saved_step != self.step:
            self._save(pl_module)

    def _note(self, trainer: pl.Trainer, module: CosmosModule, step_s: float) -> None:
        optim = self.config.optim
        losses, sigmas = module.take_found()
        loss = sum(losses) / len(losses)
        ids = self.loader.sample_ids(self.step - 1)
        grad_norm = float(trainer.callback_metrics.get("grad_norm", math.nan))
        row: Row = {
            "step": self.step,
            "loss": loss,
            # the optimizer has that of the next step already
            "lr": learning_rate(optim, self.step - 1, self.config.trainer.max_steps),
            "grad_norm": grad_norm,
            "step_s": step_s,
            "data_wait_s": self.passes.take_waited_s(),
            "tokens_per_s": module.tokens_of_a_step / step_s,
            "mem_gb": peak_memory_gb(self.ranks.device),
        }
        samples = [
            {"step": self.step, "sample": sample, "sigma": sigma, "loss": one}
            for sample, sigma, one in zip(ids, sigmas, losses, strict=True)
        ]
        self.record.step(row, samples)
        self.bar.advance(loss=loss, lr=row["lr"])
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            raise StageError(
                f"step {self.step} has loss {loss:.4g} and gradient norm {grad_norm:.4g}, and "
                f"engine=nemo skips no steps; lower optim.lr, or use engine=torch"
            )

    def _evaluate(self, module: CosmosModule) -> None:
        trainer, denoiser = self.config.trainer, module.denoiser
        if self.validation and self._is_due(trainer.validate_every):
            with evaluating(denoiser):
                row = self.validation.run(denoiser, self.ranks, nullcontext)
            self.record.validation({"step": self.step, **row})
            self.last_loss = row["val_loss"]
            logger.info(f"step {self.step}: validation loss {row['val_loss']:.4f}")
        if self.previews and self._is_due(trainer.preview_every):
            with evaluating(denoiser):
                path = self.previews.show(
                    denoiser, self.step, self.ranks, nullcontext, lambda: None
                )
            self.record.preview(path, self.step)

    def _is_due(self, every: int) -> bool:
        is_end = self.step in (0, self.config.trainer.max_steps)
        return is_end or self.step % every == 0

    def _save(self, module: CosmosModule) -> None:
        owner, head_dim = self.owner, self.config.model.head_dim
        with self.record.timed("checkpoint_s", self.step):
            table = weights_for_rank_0(module.network, head_dim, self.ranks.is_first)
            device, base = self.ranks.device, owner.start.base
            facts = facts_of(self.config, owner.store, owner.fps, base, device, "nemo")
            self.saver.save(self.step, table, facts)
        self.saved_step = self.step


def check_device(device: torch.device) -> None:
    """Raise ConfigError unless Megatron's training runs there."""
    if device.type != "cuda":
        raise ConfigError(
            f"engine.name=nemo trains on CUDA devices, not on {device}; use engine=torch"
        )


def check_batch(config: Config, dp: int) -> None:
    """Raise ConfigError unless a step is a whole number of equal passes on every rank."""
    total, micro = config.trainer.global_batch_size, config.trainer.micro_batch_size
    if total % (dp * micro):
        raise ConfigError(
            f"trainer.global_batch_size={total} is not divisible by trainer.micro_batch_size="
            f"{micro} on {dp} data-parallel ranks, as engine=nemo needs; use a multiple of "
            f"{dp * micro}"
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
