"""What a run does around the steps of NeMo's trainer: rows, evaluations, checkpoints, stops."""

import logging
import math
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback
from nemo.lightning.pytorch.callbacks import PreemptionCallback

from cosmos_hydra.config import Config
from cosmos_hydra.data.loader import Loader
from cosmos_hydra.data.store import SampleStore
from cosmos_hydra.engines.nemo.module import CosmosModule, Passes
from cosmos_hydra.engines.nemo.saving import NemoSaver, weights_for_rank_0
from cosmos_hydra.engines.torch.looks import Looks
from cosmos_hydra.engines.torch.mesh import Ranks
from cosmos_hydra.engines.torch.optimizer import learning_rate
from cosmos_hydra.engines.torch.saving import facts_of
from cosmos_hydra.engines.torch.start import Start
from cosmos_hydra.engines.torch.usage import peak_memory_gb
from cosmos_hydra.errors import StageError
from cosmos_hydra.signals import STOPPING, StopRequest
from cosmos_hydra.tracking.record import Record

Row = dict[str, Any]
logger = logging.getLogger(__name__)


class Run(Protocol):
    """What the callbacks ask of a run."""

    config: Config
    run: Path
    store: SampleStore
    ranks: Ranks
    start: Start
    step: int
    fps: float
    fitted_tokenizer: Path | None

    def loader(self) -> Loader:
        """Return what loads this rank's part of each step."""


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

    def __init__(self, owner: Run, bar: Any) -> None:
        self.owner, self.bar = owner, bar
        self.loader = owner.loader()
        self.config, self.ranks, self.step = owner.config, owner.ranks, owner.step
        if self.ranks.is_first:
            self.ranks.wait()  # rank 0 last: it cuts what the others read
        self.record = Record(self.config, owner.run, self.step, self.ranks.is_first)
        if not self.ranks.is_first:
            self.ranks.wait()
        self.saved_step = self.step
        self.looks = Looks(self.config, owner.run, owner.store, self.ranks, self.record)
        self.saver = NemoSaver(
            owner.run,
            self.ranks,
            self.config.model,
            self.config.trainer.keep,
            owner.fitted_tokenizer,
        )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Prepare what the steps are measured with."""
        self.saver.trainer = trainer
        self.looks.prepare(self.step)

    def on_train_start(self, trainer: pl.Trainer, pl_module: CosmosModule) -> None:
        """Look at the weights that the run begins with."""
        if self.step == 0:
            self._look(pl_module)
        self.began_s = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the step, and do what is due."""
        self.step += 1
        self._note(trainer, pl_module)
        self._look(pl_module)
        every = self.config.trainer.save_every
        if every and self.step % every == 0:
            self._save(pl_module)
        self.began_s = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Save the last step."""
        if self.saved_step != self.step:
            self._save(pl_module)

    def _note(self, trainer: pl.Trainer, module: CosmosModule) -> None:
        optim = self.config.optim
        losses, sigmas = module.take_found()
        step_s = time.perf_counter() - self.began_s  # the losses were waited for
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

    def _look(self, module: CosmosModule) -> None:
        self.looks.look(module.denoiser, nullcontext, self.step, self.looks.due(self.step))

    def _save(self, module: CosmosModule) -> None:
        owner, head_dim = self.owner, self.config.model.head_dim
        with self.record.timed("checkpoint_s", self.step):
            table = weights_for_rank_0(module.network, head_dim, self.ranks.is_first)
            device, base = self.ranks.device, owner.start.base
            facts = facts_of(self.config, owner.store, owner.fps, base, device, "nemo")
            self.saver.save(self.step, table, facts)
        self.saved_step = self.step
