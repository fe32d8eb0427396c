"""No rank ever holds or reads the whole model."""

import json
from pathlib import Path

import pytest
from distributed_cases import count_held
from ranks import run
from small_runs import initialised, small_config

from cosmos_hydra.job import Job
from cosmos_hydra.stages.export import run as export
from cosmos_hydra.weights.diffusers import save_transformer

MODEL = ("model.num_heads=4", "model.head_dim=24", "trainer.global_batch_size=4")


@pytest.mark.parametrize(
    ("layout", "most", "file"),
    [
        pytest.param(("parallel.dp_shard=4",), 0.26, None, id="fsdp 4"),
        # norms, adaLN and positions, much of so small a model, are whole on both tp ranks
        pytest.param(
            ("parallel.dp_shard=2", "parallel.tp=2"),
            0.33,
            "o/model.pt",
            id="fsdp 2 x tp 2 from the original's file",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_rank_reads_and_holds_its_part(
    small_samples: Path, tmp_path: Path, layout: tuple[str, ...], most: float, file: str | None
) -> None:
    model = small_config(small_samples, *MODEL).model
    save_transformer(initialised(model, seed=0), model, tmp_path / "weights")
    if file:
        weights = f"checkpoint={tmp_path / 'weights'}"
        asked = ("stage=export", weights, "export.format=original", f"export.path={tmp_path / 'o'}")
        export(small_config(small_samples, *MODEL, *asked), Job(tmp_path, asked))
    weights = f"model.weights.path={tmp_path / (file or 'weights')}"
    run(4, count_held, small_samples, (*MODEL, weights, *layout), tmp_path)
    ranks = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(4)]
    for found in ranks:
        assert found["read"] == found["held"]
        assert found["moments"] == 2 * found["held"]
        assert found["held"] < most * found["whole"]
    assert sum(found["held"] for found in ranks) >= ranks[0]["whole"]
