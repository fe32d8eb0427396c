"""What the ranks of a test do in the stages whose work is shared out clip by clip."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import raw_videos
import small_runs
import torch

from cosmos_hydra.engines.torch.team import gather_team
from cosmos_hydra.errors import CosmosError, StageError
from cosmos_hydra.job import Job
from cosmos_hydra.models.toy_tokenizer import ToyTokenizer
from cosmos_hydra.stages.preprocess import run as run_preprocess

CPU = torch.device("cpu")


def counted(owner: Any, name: str) -> list[int]:
    """Return a list that grows with each call of the method."""
    calls: list[int] = []
    method = getattr(owner, name)

    def call(*arguments: Any) -> Any:
        calls.append(1)
        return method(*arguments)

    setattr(owner, name, call)
    return calls


class Said(logging.Handler):
    """What this rank logs, also where other ranks are silent."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logger = logging.getLogger("cosmos_hydra")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def note(out: Path, **facts: Any) -> None:
    """Save what this rank has done."""
    (out / f"rank_{os.environ['RANK']}.json").write_text(json.dumps(facts))


def preprocess(root: Path, overrides: tuple[str, ...], out: Path) -> None:
    """Preprocess root/raw; save how many clips this rank encoded, and what it logged or raised."""
    encoded, said, raised = counted(ToyTokenizer, "encode"), Said(), ""
    try:
        run_preprocess(raw_videos.small_config(root, *overrides), Job(out, ()))
    except StageError as error:
        raised = str(error)
    note(out, encoded=len(encoded), said=said.lines, raised=raised)


def generate(checkpoint: Path, overrides: tuple[str, ...], out: Path) -> None:
    """Generate into `out`; save how many videos this rank decoded."""
    decoded = counted(ToyTokenizer, "decode")
    small_runs.generate(checkpoint, out, *overrides)
    note(out, decoded=len(decoded))


def refuse(out: Path) -> None:
    """Save what every rank hears of an error of rank 0, and that only rank 0 acted."""
    team, acted = gather_team(CPU), []

    def act() -> None:
        acted.append(1)
        raise StageError("the disk is full")

    try:
        team.decide(act)
    except CosmosError as error:
        note(out, acted=acted, error=str(error), is_everywhere=error.is_everywhere)
