"""Looking at a run while it trains: validation and previews, at the steps where they are due.

Called by every rank at the same steps; rank 0 writes.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cosmos_hydra.config import Config, TokenizerKind
from cosmos_hydra.data.store import SampleStore
from cosmos_hydra.engines.torch.mesh import Ranks
from cosmos_hydra.engines.torch.precision import Autocast
from cosmos_hydra.engines.torch.previews import Previews, picture_of, remove_previews_after
from cosmos_hydra.engines.torch.shard import eager
from cosmos_hydra.engines.torch.validation import Validation
from cosmos_hydra.models.transformer import Denoiser, evaluating
from cosmos_hydra.signals import StopAsked
from cosmos_hydra.tracking.record import Record

Due = tuple[bool, bool]  # validation, preview
logger = logging.getLogger(__name__)


class Looks:
    """What is looked at in one run, and how often.

    `given` names the weights that the run starts from, if they were given.
    """

    def __init__(
        self,
        config: Config,
        run: Path,
        store: SampleStore,
        ranks: Ranks,
        record: Record,
        given: str | None = None,
    ) -> None:
        self.config, self.run, self.store, self.ranks = config, run, store, ranks
        self.record, self.given = record, given
        self.last_loss: float | None = None
        self.validation: Validation | None = None
        self.previews: Previews | None = None

    def due(self, step: int) -> Due:
        """Return what is to be done after a step."""
        trainer = self.config.trainer
        return self._is_due(trainer.validate_every, step), self._is_due(trainer.preview_every, step)

    def lacking(self, step: int) -> Due:
        """Return what is due at a step and has not been done, by what is on disk."""
        validation, preview = self.due(step)
        has_preview = picture_of(self.run, step).is_file() or not self._can_decode
        return validation and not self.record.has_validation, preview and not has_preview

    def prepare(self, step: int) -> None:
        """Load what is looked at, and show the clips themselves."""
        trainer = self.config.trainer
        self.validation = Validation(self.config, self.store) if trainer.validate_every else None
        if self.validation and not self.validation.is_held_out:
            logger.warning("nothing is held out: the validation loss is on training samples")
        if self.ranks.is_first:
            remove_previews_after(self.run, step)
        if trainer.preview_every and self._can_decode:
            self.previews = Previews(self.config, self.store, self.run, self.store.fitted_tokenizer)
            if self.ranks.is_first:
                self.previews.show_data(self.ranks.device)
        elif trainer.preview_every:
            logger.warning("no previews: model.tokenizer.path is not set")

    def look(
        self,
        denoiser: Denoiser,
        autocast: Autocast,
        step: int,
        due: Due,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Do what is due; `check_stop` may raise StopAsked to end it early."""
        with suppress(StopAsked):
            if self.validation and due[0]:
                self._validate(self.validation, denoiser, autocast, step, check_stop)
            if self.previews and due[1]:
                with self.record.timed("preview_s", step), self._evaluating(denoiser):
                    path = self.previews.show(denoiser, step, self.ranks, autocast, check_stop)
                self.record.preview(path, step)

    @contextmanager
    def _evaluating(self, denoiser: Denoiser) -> Iterator[None]:
        with evaluating(denoiser), eager(self.config.parallel):
            yield

    def _is_due(self, every: int, step: int) -> bool:
        is_end = step in (0, self.config.trainer.max_steps)
        return every > 0 and (is_end or step % every == 0)

    @property
    def _can_decode(self) -> bool:
        tokenizer = self.config.model.tokenizer
        is_toy = tokenizer.kind is TokenizerKind.toy
        return tokenizer.path is not None or (is_toy and self.store.fitted_tokenizer.is_file())

    def _validate(
        self,
        validation: Validation,
        denoiser: Denoiser,
        autocast: Autocast,
        step: int,
        check_stop: Callable[[], None],
    ) -> None:
        began_s = time.perf_counter()
        with self._evaluating(denoiser):
            row = validation.run(denoiser, self.ranks, autocast, check_stop)
        self.record.validation({"step": step, **row, "validation_s": time.perf_counter() - began_s})
        self.last_loss = row["val_loss"]
        logger.info(
            f"step {step}: validation loss {row['val_loss']:.4f} "
            f"(gaussian {row['gaussian_loss']:.4f}, linear {row['linear_loss']:.4f})"
            + "".join(
                f", {row[f'val_loss_given_{frames}']:.4f} with {frames} given"
                for frames in self.config.model.objective.given_frames
            )
        )
        if self.given is not None and step == 0 and row["val_loss"] > row["linear_loss"]:
            logger.warning(
                f"{self.given}: these weights do not know this data or were loaded wrong: their "
                f"loss {row['val_loss']:.4f} is above {row['linear_loss']:.4f}, that of the linear "
                f"denoiser; look whether model= and the tokenizer are theirs"
            )
