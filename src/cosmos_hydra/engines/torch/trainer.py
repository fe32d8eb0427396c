"""Post-training: steps, validation, previews, checkpoints, and a clean way out.

Every rank runs this; rank 0 alone writes, but for its share of a checkpoint.

Everything random is a function of (seed, step, sample), so a resumed run computes what an
uninterrupted one would have.
"""

import logging
import math
import signal
import time
from pathlib import Path
from typing import Any

import torch

from cosmos_hydra.config import Config, PeftKind, TokenizerKind
from cosmos_hydra.data.clips import HELD_OUT, TRAIN
from cosmos_hydra.data.loader import Batch, Loader
from cosmos_hydra.data.store import SampleStore
from cosmos_hydra.engines.torch import checkpoint, state
from cosmos_hydra.engines.torch.gate import check_paths
from cosmos_hydra.engines.torch.kernels import effective_attention
from cosmos_hydra.engines.torch.looks import Due, Looks
from cosmos_hydra.engines.torch.mesh import Ranks
from cosmos_hydra.engines.torch.optimizer import build_optimizer
from cosmos_hydra.engines.torch.precision import effective_precision
from cosmos_hydra.engines.torch.saving import Saver, facts_of
from cosmos_hydra.engines.torch.shard import parallelize
from cosmos_hydra.engines.torch.start import check_samples, fill, plan_start
from cosmos_hydra.engines.torch.step import Stepper
from cosmos_hydra.engines.torch.usage import peak_memory_gb
from cosmos_hydra.errors import Preempted, StageError
from cosmos_hydra.logs import progress
from cosmos_hydra.models.lora import add_adapters
from cosmos_hydra.models.transformer import Denoiser, build_transformer
from cosmos_hydra.signals import StopRequest, stop_on_request
from cosmos_hydra.tracking.record import Record

Row = dict[str, Any]
logger = logging.getLogger(__name__)


class Trainer:
    """One run; `train` does the work."""

    def __init__(self, config: Config, run: Path, store: SampleStore, ranks: Ranks) -> None:
        self.config, self.run, self.store, self.ranks = config, run, store, ranks
        self.device = ranks.device
        self.fps = check_samples(config, store)
        start = ranks.decide(lambda: plan_start(config, run, store))
        fitted = store.fitted_tokenizer
        is_toy = config.model.tokenizer.kind is TokenizerKind.toy
        self.fitted_tokenizer = fitted if is_toy and fitted.is_file() else None
        # on no device yet: no rank ever holds the whole model
        with torch.device("meta"):
            transformer = build_transformer(config.model)
            if config.peft.kind is PeftKind.lora:
                add_adapters(transformer, config.peft)
        parallelize(transformer, config, ranks)
        transformer.to_empty(device=self.device)
        self.denoiser = Denoiser(transformer)
        self.optimizer = build_optimizer(
            self.denoiser, config.optim, config.seed, ranks.shard, config.parallel.compile
        )
        self.stepper = Stepper(config, self.denoiser, self.optimizer, ranks)
        self.autocast = self.stepper.autocast
        self.base, self.given = start.base, start.given
        self.step = fill(start, config, transformer, self.optimizer, ranks)
        self.is_consistent = True  # false until a step's weights and rows are both there

    @property
    def transformer(self) -> torch.nn.Module:
        return self.denoiser.transformer

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.denoiser.parameters())

    @property
    def num_trained(self) -> int:
        return sum(p.numel() for p in self.denoiser.parameters() if p.requires_grad)

    def train(self) -> float | None:
        """Run to trainer.max_steps and return the last validation loss.

        A checkpoint is on disk whichever way this ends.
        Raises: KeyboardInterrupt, Preempted or StageError after saving.
        """
        config, trainer = self.config, self.config.trainer
        self.record = self._open_record()
        self.looks = Looks(config, self.run, self.store, self.ranks, self.record, self.given)
        # a run that was stopped in its last step may still lack its last validation or preview
        is_last = self.step == trainer.max_steps and any(self.looks.lacking(self.step))
        if self.step >= trainer.max_steps and not is_last:
            self.record.close()
            logger.info(
                f"{self.run} has finished at step {self.step}; "
                f"raise trainer.max_steps, or use resume.mode=fresh"
            )
            return None
        if self.ranks.is_first:
            checkpoint.remove_leftovers(self.run)
            size_bytes = checkpoint.bytes_per_parameter(config.optim.state) * self.num_trained
            checkpoint.check_space(self.run, size_bytes)
        self.saver = Saver(
            self.run, self.ranks, config.model, trainer.keep, self.fitted_tokenizer, config.peft
        )
        if trainer.save_every:
            self.saver.staging.prepare(self._table())
        precision = effective_precision(config.parallel.precision, self.device)
        is_part = self.num_trained < self.num_parameters
        part = f", {self.num_trained / 1e6:.2f} M of them trained," if is_part else ""
        logger.info(
            f"{config.model.name}: {self.num_parameters / 1e6:.1f} M parameters{part} on "
            f"{self.ranks} in {precision}; run {self.run}, "
            f"steps {self.step} to {trainer.max_steps}"
        )
        logger.info(
            f"data: {config.data.path}, {len(self.store.splits[TRAIN])} samples to train on, "
            f"{len(self.store.splits[HELD_OUT])} held out; {trainer.global_batch_size} a step"
        )
        self.saved_step = self.step
        self.is_agreed = False  # whether every rank leaves the loop at the same step
        with stop_on_request() as stop:
            try:
                self.looks.prepare(self.step)
                self._loop(stop)
            finally:
                try:
                    # of several ranks, one alone cannot save
                    is_agreed = self.ranks.mesh is None or self.is_agreed
                    if self.is_consistent and is_agreed and self.saved_step != self.step:
                        self._save()
                    self.saver.wait()
                finally:
                    self.saver.close()
                    self.record.close()
        if stop.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if stop:
            raise Preempted(
                f"stopped by a signal at step {self.step} of {self.run}; "
                f"the same command goes on from there"
            )
        return self.last_loss

    def loader(self) -> Loader:
        """Return what loads this rank's part of each step."""
        return Loader(
            self.store,
            self.store.splits[TRAIN],
            self.config.model.objective,
            self.config.seed,
            self.config.trainer.global_batch_size,
            self.config.trainer.micro_batch_size,
            (self.ranks.dp_rank, self.ranks.degrees.dp),
        )

    def _open_record(self) -> Record:
        """Return the record, on rank 0 last: it cuts what the others read."""
        if self.ranks.is_first:
            self.ranks.wait()
        record = Record(self.config, self.run, self.step, self.ranks.is_first)
        if not self.ranks.is_first:
            self.ranks.wait()
        return record

    def _loop(self, stop: StopRequest) -> None:
        trainer = self.config.trainer
        loader = self.loader()
        self.denoiser.train()
        if self.given is not None:
            check_paths(self.stepper, loader, self.given)
        self._look(self.looks.lacking(self.step), stop)
        with progress("post_train", trainer.max_steps, "steps", start=self.step) as bar:
            began_s = time.perf_counter()
            for batches in loader.steps(self.step, trainer.max_steps):
                if self.ranks.any(bool(stop)):
                    self.is_agreed = True
                    return
                waited_s = time.perf_counter() - began_s
                row, samples = self._update(loader.sample_ids(self.step), batches)
                row["step_s"] = time.perf_counter() - began_s
                row["data_wait_s"] = waited_s
                row["tokens_per_s"] = self._tokens(batches) / row["step_s"]
                row["mem_gb"] = peak_memory_gb(self.device)
                self.record.step(row, samples)
                self.is_consistent = True
                if self.record.skipped_steps > trainer.max_skipped_steps:
                    self.is_agreed = True  # every rank skipped the same steps
                    raise StageError(
                        f"trainer.max_skipped_steps={trainer.max_skipped_steps}: steps up to "
                        f"{self.step} were skipped, each with a loss or gradient that is no "
                        f"finite number; lower optim.lr, or look at the samples named above"
                    )
                shown = {"loss": row["loss"], "lr": row["lr"]}
                if self.last_loss is not None:
                    shown["val"] = self.last_loss
                bar.advance(**shown)
                self._look(self.looks.due(self.step), stop)
                if trainer.save_every and self.step % trainer.save_every == 0:
                    self._save()
                began_s = time.perf_counter()
        self.is_agreed = True

    def _update(self, ids: list[str], batches: list[Batch]) -> tuple[Row, list[Row]]:
        """Do one optimizer step; return its row for metrics.jsonl and those of its samples.

        With a loss or gradient that is no finite number the weights stay as they are.
        """
        outcome = self.stepper.compute(self.step, batches)
        self.saver.staging.before_update()
        self.is_consistent = False
        self.stepper.apply(outcome)
        self.step += 1
        rows = [
            {"step": self.step, "sample": sample_id, "sigma": sigma, "loss": loss}
            for sample_id, sigma, loss in zip(ids, outcome.sigmas, outcome.losses, strict=True)
        ]
        row: Row = {
            "step": self.step,
            "loss": outcome.loss,
            "lr": outcome.lr,
            "grad_norm": outcome.grad_norm,
        }
        if not outcome.is_finite:
            row["skipped"] = True
            self._blame(rows, outcome.loss, outcome.grad_norm)
        return row, rows

    def _blame(self, rows: list[dict[str, Any]], loss: float, grad_norm: float) -> None:
        # a gradient alone can come from any sample of the step
        worst = [row for row in rows if not math.isfinite(row["loss"])] or rows
        names = ", ".join(self.store.name_of(row["sample"]) for row in worst)
        logger.warning(
            f"step {self.step} is skipped: loss {loss:.4g}, gradient norm {grad_norm:.4g}; "
            f"sample {names}"
        )

    def _tokens(self, batches: list[Batch]) -> int:
        """Return the tokens of a step over all ranks."""
        cells = sum(batch.latent_BCFHW[:, 0].numel() for batch in batches)
        frames, height, width = self.config.model.patch_size
        return self.ranks.degrees.dp * cells // (frames * height * width)

    def _look(self, due: Due, stop: StopRequest) -> None:
        # of several ranks, none can leave alone
        check_stop = stop.check if self.ranks.mesh is None else lambda: None
        self.looks.look(self.denoiser, self.autocast, self.step, due, check_stop)

    @property
    def last_loss(self) -> float | None:
        """Return the last validation loss of `train`."""
        return self.looks.last_loss

    def _save(self) -> None:
        attention = effective_attention(self.config, self.device).name
        facts = facts_of(self.config, self.store, self.fps, self.base, self.device, attention)
        with self.record.timed("checkpoint_s", self.step):
            self.saver.save(self.step, self._table(), facts)
        self.saved_step = self.step

    def _table(self) -> state.Table:
        return state.table_of(self.transformer, self.optimizer)
