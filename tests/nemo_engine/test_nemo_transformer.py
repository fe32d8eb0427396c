"""Megatron's network and the torch engine's are one function: predictions and all gradients."""

import json
import logging
from pathlib import Path

import pytest
from megatron_ranks import run
from nemo_cases import compare

logger = logging.getLogger(__name__)
TOLERANCE = 1e-5
MODEL = (
    "model.num_layers=2",
    "model.num_heads=4",
    "model.head_dim=24",
    "model.adaln_lora_dim=8",
    "model.text_dim=32",
    "model.max_size=[4,16,16]",
    "model.rope_scale=[2.0,1.0,1.0]",
)
V2W = ("model.condition_mask=true", "model.rope_scale=[2.0,2.0,2.0]")
APART = "parallel.sequence_parallel=false"
CASES = {
    "1 rank": (1, ()),
    "1 rank, Video2World": (1, V2W),
    "1 rank, all recomputed": (1, ("parallel.recompute=full",)),
    "tp 2": (2, ("parallel.tp=2", APART)),
    "tp 2, Video2World": (2, ("parallel.tp=2", APART, *V2W)),
    "tp 4": (4, ("parallel.tp=4", APART)),
    "tp 4, Video2World": (4, ("parallel.tp=4", APART, *V2W)),
    "tp 2, sequence parallel": (2, ("parallel.tp=2",)),
    "cp 2": (2, ("parallel.cp=2",)),
    "tp 2 x cp 2, sequence parallel": (4, ("parallel.tp=2", "parallel.cp=2")),
}
# each thing once
NORMAL = (
    *("1 rank, Video2World", "1 rank, all recomputed", "tp 2"),
    *("tp 4, Video2World", "tp 2 x cp 2, sequence parallel"),
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in NORMAL else pytest.mark.slow) for name in CASES],
)
def test_predictions_and_gradients_are_those_of_the_torch_engine(name: str, tmp_path: Path) -> None:
    world_size, overrides = CASES[name]
    run(world_size, compare, (*MODEL, *overrides), tmp_path)
    for rank in range(world_size):
        found = json.loads((tmp_path / f"rank_{rank}.json").read_text())
        logger.info(f"{name}, rank {rank}: {found}")  # shown with --log-cli-level=info
        assert found["forward"] < TOLERANCE
        assert found["gradient"] < TOLERANCE, found["worst"]
