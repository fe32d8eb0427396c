"""A run cut on one mesh goes on on another with the same numbers, and any mesh trains the same."""

import itertools
import random
from pathlib import Path

import pytest
from distributed_cases import train
from ranks import run
from small_runs import rows_of

from cosmos_hydra import runs

MODEL = (
    "model.num_heads=4",
    "model.head_dim=24",
    "trainer.global_batch_size=4",
    "trainer.micro_batch_size=1",
    "trainer.save_every=4",
    "trainer.keep=0",
    "trainer.validate_every=4",
    "log.report=false",
)
MESHES = {
    "1": (1,),
    "fsdp 2": (2, "parallel.dp_shard=2"),
    "fsdp 4": (4, "parallel.dp_shard=4"),
    "tp 2": (2, "parallel.tp=2"),
    "cp 2": (2, "parallel.cp=2"),
    "fsdp 2 x tp 2": (4, "parallel.dp_shard=2", "parallel.tp=2"),
    "fsdp 2 x cp 2": (4, "parallel.dp_shard=2", "parallel.cp=2"),
}
PAIRS = list(itertools.product(MESHES, MESHES))
SAMPLED = random.Random(5).sample([pair for pair in PAIRS if pair[0] != pair[1]], 1)


def train_on(mesh: str, samples: Path, folder: Path, *overrides: str) -> Path:
    """Train on a mesh and return the run directory."""
    world_size, *degrees = MESHES[mesh]
    run(world_size, train, samples, (*MODEL, *degrees, *overrides), folder)
    return folder


@pytest.fixture(scope="module")
def one_process(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of 20 steps in one process."""
    folder = tmp_path_factory.mktemp("one")
    return train_on("1", small_samples, folder, "trainer.max_steps=20")


def assert_same_numbers(run_folder: Path, wanted: Path, tolerance: float) -> None:
    """Compare training and validation rows."""
    found = {(row["step"], "loss" in row): row for row in rows_of(run_folder)}
    expected = {(row["step"], "loss" in row): row for row in rows_of(wanted)}
    assert found.keys() <= expected.keys()
    for key, row in found.items():
        for name in ("loss", "grad_norm", "val_loss", "gaussian_loss"):
            if name in row:
                assert row[name] == pytest.approx(expected[key][name], rel=tolerance), (key, name)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [name for name in MESHES if name != "1"])
def test_a_curve_of_20_steps_is_the_same_on_any_mesh(
    small_samples: Path, tmp_path: Path, one_process: Path, mesh: str
) -> None:
    folder = train_on(mesh, small_samples, tmp_path / "run", "trainer.max_steps=20")
    assert [row["step"] for row in rows_of(folder) if "loss" in row] == list(range(1, 21))
    assert_same_numbers(folder, one_process, 1e-5)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(*pair, marks=() if pair in SAMPLED else pytest.mark.slow, id=" -> ".join(pair))
        for pair in PAIRS
    ],
)
def test_a_run_cut_on_one_mesh_goes_on_on_another(
    small_samples: Path, tmp_path: Path, one_process: Path, first: str, second: str
) -> None:
    folder = train_on(first, small_samples, tmp_path / "run", "trainer.max_steps=4")
    assert runs.steps(folder) == [4]
    train_on(second, small_samples, folder, "trainer.max_steps=8")
    assert runs.steps(folder) == [4, 8]
    assert [row["step"] for row in rows_of(folder) if "loss" in row] == list(range(1, 9))
    assert_same_numbers(folder, one_process, 1e-6)
