"""Losses and every parameter's gradient of any layout equal those of one process."""

from pathlib import Path
from typing import Any

import pytest
from compare import assert_same_gradients, found_in
from distributed_cases import compute_gradients
from ranks import folder_of, run

# heads for tp=4 and cp=4; 2 micro-batches a rank at least; padding and text dropout on
MODEL = (
    "model.num_heads=4",
    "model.head_dim=24",
    "model.objective.text_dropout=0.5",
    "trainer.global_batch_size=8",
    "trainer.micro_batch_size=1",
)
LAYOUTS = {
    "ddp 2": (2, "parallel.dp_replicate=2"),
    "fsdp 2": (2, "parallel.dp_shard=2"),
    "fsdp 4": (4, "parallel.dp_shard=4"),
    "hybrid 2x2": (4, "parallel.dp_replicate=2", "parallel.dp_shard=2"),
    "tp 2": (2, "parallel.tp=2"),
    "tp 4": (4, "parallel.tp=4"),
    "tp 2 without sequence": (2, "parallel.tp=2", "parallel.sequence_parallel=false"),
    "cp 2": (2, "parallel.cp=2"),
    "cp 4": (4, "parallel.cp=4"),
    "ring of 3": (3, "parallel.cp=3"),
    "ring of 3, recomputed": (3, "parallel.cp=3", "parallel.recompute=save_attention"),
    "fsdp 2 x tp 2": (4, "parallel.dp_shard=2", "parallel.tp=2"),
    "fsdp 2 x cp 2": (4, "parallel.dp_shard=2", "parallel.cp=2"),
    "cp 2 x tp 2": (4, "parallel.cp=2", "parallel.tp=2"),
}
SAMPLED = ("ring of 3", "cp 2 x tp 2", "fsdp 2 x tp 2")


@pytest.fixture(scope="module")
def one_process(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what one process computes."""
    folder = tmp_path_factory.mktemp("one")
    run(1, compute_gradients, small_samples, MODEL, folder)
    return found_in(folder)


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(name, marks=() if name in SAMPLED else pytest.mark.slow, id=name)
        for name in LAYOUTS
    ],
)
def test_gradients_equal_those_of_one_process(
    small_samples: Path, tmp_path: Path, one_process: dict[str, Any], layout: str
) -> None:
    world_size, *degrees = LAYOUTS[layout]
    folder = folder_of(tmp_path, "out")
    run(world_size, compute_gradients, small_samples, (*MODEL, *degrees), folder)
    found = found_in(folder)
    worst, error = assert_same_gradients(found, one_process)
    print(f"{layout}: worst gradient {worst} {error:.1e}")  # noqa: T201 (a table to show)
    assert len(found["gradients"]) == 50  # every parameter of two blocks
