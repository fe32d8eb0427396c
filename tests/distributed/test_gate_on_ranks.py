"""Training and sampling are compared on every rank, and all come to one answer."""

import json
from pathlib import Path

import pytest
from distributed_cases import check_given_weights
from ranks import folder_of, run

LAYOUTS = {
    "fsdp 2 x tp 2": (4, "fp32", "parallel.dp_shard=2", "parallel.tp=2"),
    "fsdp 2 in bf16": (2, "bf16", "parallel.dp_shard=2"),
    "cp 2": (2, "fp32", "parallel.cp=2"),
    "ddp 2": (2, "fp32", "parallel.dp_replicate=2"),
}
SAMPLED = ("fsdp 2 x tp 2",)
TOLERANCE = {"fp32": "1e-04", "bf16": "5e-02"}


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(name, marks=() if name in SAMPLED else pytest.mark.slow, id=name)
        for name in LAYOUTS
    ],
)
def test_all_ranks_say_the_same_also_of_a_fault_on_one(
    small_samples: Path, tmp_path: Path, layout: str
) -> None:
    world_size, precision, *degrees = LAYOUTS[layout]
    folder = folder_of(tmp_path, "out")
    model = ("model.num_heads=4", "model.head_dim=24", f"parallel.precision={precision}")
    run(world_size, check_given_weights, small_samples, (*model, *degrees), folder)
    (agreed, refused), *others = [
        json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(world_size)
    ]
    print(f"{layout}: {agreed}")  # noqa: T201
    measured, _, sigma = agreed.partition(" on a clip at sigma ")
    assert f"(tolerance {TOLERANCE[precision]} in {precision})" in measured
    assert float(measured.split()[5]) < float(TOLERANCE[precision]) / 5
    assert sigma
    assert refused.startswith("given: training and sampling give the network another text (")
    for agreed_there, refused_there in others:
        assert agreed_there.partition(" on a clip at sigma ")[0] == measured
        assert refused_there == refused
