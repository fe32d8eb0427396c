"""What is looked at while training leaves the training step as it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import rows_of, small_config, train

from cosmos_hydra.engines.torch import shard
from cosmos_hydra.engines.torch.shard import compile_blocks


def test_validation_and_previews_compile_nothing(
    small_samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def counting(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(shard, "compile_blocks", lambda blocks: compile_blocks(blocks, counting))
    often = ("trainer.validate_every=1", "trainer.preview_every=1", "trainer.validation_samples=1")
    never = ("trainer.validate_every=0", "trainer.preview_every=0")
    counts = {}
    for looks in (often, never):
        torch.compiler.reset()
        typed = ("parallel.compile=true", "trainer.max_steps=2", "trainer.save_every=0", *looks)
        train(small_config(small_samples, *typed), tmp_path / looks[0])
        counts[looks] = len(compiled)
        compiled.clear()
    assert counts[often] == counts[never] > 0
    assert sum("val_loss" in row for row in rows_of(tmp_path / often[0])) == 3
