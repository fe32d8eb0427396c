"""What the ranks of the test of preprocessing run."""

import json
import logging
import time
from pathlib import Path

import torch

from cosmos_hydra.config import Config
from cosmos_hydra.data.prepare import prepare
from cosmos_hydra.data.writer import SampleWriter
from cosmos_hydra.engines.torch.team import gather_team


def note_what_is_made(config: Config, folder: Path) -> None:
    """Preprocess, and write which samples this rank made and what it logged."""
    made: list[str] = []
    messages: list[str] = []
    write = SampleWriter.write

    def noted(self: SampleWriter, sample_id: str, *arguments: object) -> None:
        made.append(sample_id)
        time.sleep(0.1)  # a real encode takes longer than the others need to look
        write(self, sample_id, *arguments)  # type: ignore[arg-type]

    SampleWriter.write = noted  # type: ignore[method-assign]
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
    device = torch.device("cpu")
    team = gather_team(device)
    store = prepare(config, device, team=team)
    found = {"made": made, "messages": messages, "hash": store.content_hash}
    (folder / f"rank_{team.rank}.json").write_text(json.dumps(found))
