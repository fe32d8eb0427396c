"""Weights of any format fill Megatron's network bit for bit, and so do its own checkpoints."""

from pathlib import Path

import pytest
import torch
from foreign_weights import MODEL, random_weights, write_torch_dist, write_zarr
from megatron_ranks import run
from nemo_cases import load_and_save, load_saved
from small_runs import assert_same_tensors, small_config

from cosmos_hydra.engines.nemo.weights import shapes_of
from cosmos_hydra.weights.locate import locate
from cosmos_hydra.weights.open import open_weights

WIDTHS = {"text2world": "model.condition_mask=false", "video2world": "model.condition_mask=true"}
# which format at which tp, and with how many tp ranks it is read again
CASES = [
    ("zarr", "text2world", 2, 1),
    pytest.param("torch_dist", "video2world", 1, 2, marks=pytest.mark.slow),
]


def overrides_of(width: str, tp: int) -> tuple[str, ...]:
    return (*MODEL, WIDTHS[width], f"parallel.tp={tp}", "parallel.sequence_parallel=false")


@pytest.mark.parametrize(("kind", "width", "tp", "other_tp"), CASES)
def test_weights_go_through_the_network_and_megatrons_checkpoint_bit_for_bit(
    kind: str, width: str, tp: int, other_tp: int, tmp_path: Path
) -> None:
    model = small_config(Path(), *overrides_of(width, tp)).model
    weights = {name: tensor.float() for name, tensor in random_weights(model).items()}
    folder, saved = tmp_path / kind, tmp_path / "saved"
    if kind == "zarr":
        write_zarr(folder, weights, tp=8)
    else:
        write_torch_dist(folder, weights)
    run(tp, load_and_save, overrides_of(width, tp), folder, saved)
    # by this project's own reader, without Megatron
    source = open_weights(locate(str(saved), "resume.path"), shapes_of(model))
    assert_same_tensors({name: source.read(name) for name in source.entries}, weights)
    # by Megatron, on another number of ranks
    run(other_tp, load_saved, overrides_of(width, other_tp), saved, tmp_path / "whole.pt")
    assert_same_tensors(torch.load(tmp_path / "whole.pt", weights_only=True), weights)
