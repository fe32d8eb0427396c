"""Checkpoints of a run with engine=nemo: those of the torch engine, with NeMo's own beside it.

`state/` holds the weights by diffusers' names, so that every other stage, and the torch engine,
takes them; `nemo/` is what NeMo's trainer goes on from: Adam's weights and moments, on any mesh.
"""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from cosmos_hydra.engines.nemo.weights import whole_weights
from cosmos_hydra.engines.torch import state
from cosmos_hydra.engines.torch.saving import Saver

NEMO = "nemo"


class NemoSaver(Saver):
    """Save one run's checkpoints while training waits: NeMo's part takes every rank's GPU."""

    trainer: pl.Trainer

    def save(self, step: int, table: state.Table, facts: dict[str, Any]) -> None:
        """Write checkpoints/step_N; `table` is empty but on rank 0."""
        self._write(step, table, facts)

    def _write_parts(
        self, temporary: Path, step: int, table: state.Table, facts: dict[str, Any]
    ) -> None:
        self.ranks.wait()  # the folder is there
        self.trainer.save_checkpoint(temporary / NEMO)
        super()._write_parts(temporary, step, table, facts)


def weights_for_rank_0(network: Any, head_dim: int, is_first: bool) -> state.Table:
    """Return whole weights in main memory, on rank 0; called by every rank."""
    table = {}
    for name, whole in whole_weights(network, head_dim):
        if is_first:
            table[f"{state.WEIGHT}.{name}"] = whole.to("cpu", copy=True)
    return table
