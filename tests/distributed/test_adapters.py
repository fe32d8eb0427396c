"""Adapters on several ranks: the same losses and gradients, and runs that go on elsewhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_cases import compute_gradients, train, train_and_compare
from ranks import folder_of, run
from small_runs import assert_same_tensors, rows_of, small_config, state_of
from small_runs import train as train_here

from cosmos_hydra import runs
from cosmos_hydra.models.lora import WEIGHTS
from cosmos_hydra.reading import read_tensors

TOLERANCE = 1e-5
MODEL = (
    *("model.num_heads=4", "model.head_dim=24", "model.objective.text_dropout=0.25"),
    *("trainer.global_batch_size=4", "trainer.micro_batch_size=1", "log.report=false"),
    *("trainer.validate_every=2", "trainer.save_every=2"),
)
LORA = ("peft.kind=lora", "peft.rank=4", "peft.alpha=8", "optim.lr=0.01")
LAYOUTS = {
    "ddp": ("parallel.dp_replicate=2",),
    "fsdp": ("parallel.dp_shard=2",),
    "cp": ("parallel.cp=2",),
    "hybrid": ("parallel.dp_replicate=2", "parallel.dp_shard=2"),
}


@pytest.fixture(scope="module")
def base(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of 2 steps with all weights."""
    folder = tmp_path_factory.mktemp("base")
    train_here(small_config(small_samples, *MODEL, "optim.lr=0.02", "trainer.max_steps=2"), folder)
    return folder


@pytest.fixture(scope="module")
def one_process(
    small_samples: Path, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Return what one process computes."""
    return gradients(1, small_samples, base, tmp_path_factory.mktemp("one"), ())


def gradients(
    world_size: int, samples: Path, base: Path, folder: Path, layout: tuple[str, ...]
) -> dict[str, Any]:
    run(
        world_size,
        compute_gradients,
        samples,
        (*MODEL, *LORA, f"resume.path={base}", *layout),
        folder,
    )
    return dict(torch.load(folder / "found.pt", weights_only=True))


@pytest.mark.parametrize(
    "layout",
    [pytest.param(n, marks=() if n == "fsdp" else pytest.mark.slow, id=n) for n in LAYOUTS],
)
def test_every_adapter_gradient_equals_that_of_one_process(
    small_samples: Path, base: Path, tmp_path: Path, one_process: dict[str, Any], layout: str
) -> None:
    world_size = 4 if layout == "hybrid" else 2
    folder = folder_of(tmp_path, "out")
    found = gradients(world_size, small_samples, base, folder, LAYOUTS[layout])
    assert found["losses"] == pytest.approx(one_process["losses"], rel=TOLERANCE)
    assert found["norm"] == pytest.approx(one_process["norm"], rel=TOLERANCE)
    wanted = one_process["gradients"]
    assert found["gradients"].keys() == wanted.keys()
    assert len(wanted) == 40
    assert all(".lora_" in name for name in wanted)
    assert min(gradient.norm() for gradient in wanted.values()) > 0
    errors = {
        name: ((found["gradients"][name] - gradient).norm() / gradient.norm()).item()
        for name, gradient in wanted.items()
    }
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] < TOLERANCE, worst


@pytest.fixture(scope="module")
def whole(small_samples: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of 4 steps on two ranks, which saw that its base stays as it is."""
    folder = tmp_path_factory.mktemp("whole")
    run(2, train_and_compare, small_samples, overrides(base, 4, "fsdp"), folder)
    return folder


def overrides(base: Path, steps: int, layout: str | None = None) -> tuple[str, ...]:
    degrees = LAYOUTS[layout] if layout else ()
    return (*MODEL, *LORA, f"resume.path={base}", f"trainer.max_steps={steps}", *degrees)


@pytest.mark.slow
def test_a_run_cut_on_one_process_goes_on_on_two(
    small_samples: Path, base: Path, whole: Path, tmp_path: Path
) -> None:
    train_here(small_config(small_samples, *overrides(base, 2)), tmp_path)
    run(2, train, small_samples, overrides(base, 4, "fsdp"), tmp_path)
    for row, wanted in zip(rows_of(tmp_path), rows_of(whole), strict=True):
        assert row == pytest.approx(wanted, rel=TOLERANCE)
    # whoever holds which part, the files of the adapter are whole
    folders = [runs.step_folder(folder, 4) / "adapter" for folder in (tmp_path, whole)]
    configs = [(folder / "adapter_config.json").read_bytes() for folder in folders]
    assert configs[0] == configs[1]
    shapes = [
        {name: tensor.shape for name, tensor in read_tensors(folder / WEIGHTS).items()}
        for folder in folders
    ]
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) == 40


@pytest.mark.slow
def test_two_and_two_steps_on_two_ranks_equal_four_bitwise(
    small_samples: Path, base: Path, whole: Path, tmp_path: Path
) -> None:
    for steps in (2, 4):
        run(2, train, small_samples, overrides(base, steps, "fsdp"), tmp_path)
    assert_same_tensors(state_of(tmp_path, 4), state_of(whole, 4))
    assert rows_of(tmp_path) == rows_of(whole)
