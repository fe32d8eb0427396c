"""How many weights differ from those that a run began with: none means that nothing was learnt."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from cosmos_hydra.errors import StageError
from cosmos_hydra.weights.base import base_of
from cosmos_hydra.weights.locate import Located
from cosmos_hydra.weights.open import open_weights
from cosmos_hydra.weights.source import Shapes, Source

logger = logging.getLogger(__name__)


@dataclass
class Difference:
    """How many tensors were compared with those of a base, and how many differ."""

    base: str
    differing: int = 0
    compared: int = 0

    def __str__(self) -> str:
        return f"{self.differing} of {self.compared} tensors differ from {self.base}"


class Comparison:
    """Compares weights with those that their run began with, a tensor in memory at a time."""

    def __init__(self, base: Located, source: Source) -> None:
        self.source, self.outcome = source, Difference(str(base))

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Compare one tensor in the dtype it has, which may be coarser than the base's."""
        before = self.source.read(name).to(tensor)
        self.outcome.compared += 1
        self.outcome.differing += not torch.equal(tensor, before)

    def report(self) -> None:
        """Log the outcome, a warning when nothing differs."""
        if self.outcome.differing:
            logger.info(f"weights: {self.outcome}")
        else:
            logger.warning(f"weights: {self.outcome}: training changed nothing that is left here")


def comparison(weights: Located, shapes: Shapes, elsewhere: str | None) -> Comparison | None:
    """Return what compares weights with those their run began with; None when there are none.

    Without a word for foreign weights and for runs from random ones; with one when they are gone.
    """
    path = (weights.checkpoint.manifest["base"] or {}).get("path") if weights.checkpoint else None
    if weights.checkpoint is None or path is None:
        return None
    try:
        base = base_of(weights.checkpoint, elsewhere)
        assert isinstance(base, Located)
        return Comparison(base, open_weights(base, shapes))
    except StageError:
        logger.warning(f"not compared with what the run began with: {path} is gone or has changed")
        return None


def compare_all(found: Comparison, tensors: Iterable[tuple[str, torch.Tensor]]) -> Difference:
    """Compare all tensors, log the outcome and return it."""
    for name, tensor in tensors:
        found.add(name, tensor)
    found.report()
    return found.outcome


class Compared(Source):
    """A source whose tensors are compared, as they are read, in the dtype they are written in."""

    def __init__(
        self, source: Source, dtypes: dict[str, torch.dtype], found: Comparison | None
    ) -> None:
        super().__init__(source.place, source.entries)
        self.source, self.dtypes, self.found = source, dtypes, found

    def read(self, name: str) -> torch.Tensor:
        tensor = self.source.read(name).to(self.dtypes[name])
        if self.found is not None:
            self.found.add(name, tensor)
        return tensor
