"""A run through NeMo's trainer has the numbers of one of the torch engine, on any mesh.

The CPU stands for CUDA (cpu_for_cuda.py); what needs Transformer Engine is in tests/gpu.
"""

from pathlib import Path

import pytest
import torch
from megatron_ranks import HAS_NEMO, run
from small_runs import generate, initialised, rows_of, small_config, train
from torch import nn

from cosmos_hydra import runs
from cosmos_hydra.weights.diffusers import save_transformer

pytestmark = pytest.mark.skipif(not HAS_NEMO, reason="nemo_toolkit is not installed")
SIZES = ("model.num_heads=4", "model.head_dim=24")
PRECISE = "parallel.precision=fp32"
WARMING = "optim.warmup_steps=3"
STEPS = (PRECISE, WARMING, "trainer.save_every=2", "trainer.keep=0", "trainer.validate_every=2")
TOLERANCE = 1e-5
COMPARED = ("loss", "lr", "grad_norm", "val_loss", "gaussian_loss")
ONE = (1, ())


def rehearse(world_size: int, *arguments: object, case: str = "train") -> None:
    """Run a case on every rank; NeMo is imported there alone."""
    run(world_size, _enter, case, *arguments)


def _enter(case: str, *arguments: object) -> None:
    import nemo_training_cases

    getattr(nemo_training_cases, case)(*arguments)


@pytest.fixture(scope="module")
def started(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Return the overrides of runs that begin with weights in which every gate is open."""
    folder = tmp_path_factory.mktemp("weights") / "transformer"
    model = small_config(small_samples, *SIZES).model
    transformer = initialised(model, seed=0)
    add_noise(transformer)
    save_transformer(transformer, model, folder)
    return (*SIZES, *STEPS, f"resume.path={folder}")


@torch.no_grad()
def add_noise(transformer: nn.Module) -> None:
    for name, parameter in transformer.named_parameters():
        generator = torch.Generator().manual_seed(len(name))
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="module")
def wanted(
    small_samples: Path, started: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a run of 4 steps by the torch engine."""
    folder = tmp_path_factory.mktemp("torch")
    train(small_config(small_samples, *started), folder)
    return folder


def assert_same_numbers(run: Path, wanted: Path, tolerance: float) -> None:
    """Compare the rows of steps and validations."""
    found, expected = rows_of(run), rows_of(wanted)
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for row, other in zip(found, expected, strict=True):
        names = [name for name in COMPARED if name in other]
        numbers = [row[name] for name in names]
        assert numbers == pytest.approx([other[n] for n in names], rel=tolerance), row["step"]


def assert_taken_up(run: Path, samples: Path, other: Path, tolerance: float) -> None:
    """Start the torch engine from a run, and compare the validation there with the run's last."""
    other.mkdir()
    train(small_config(samples, *SIZES, f"resume.path={run}", "trainer.max_steps=1"), other)
    last = [row["val_loss"] for row in rows_of(run) if "val_loss" in row][-1]
    assert rows_of(other)[0]["val_loss"] == pytest.approx(last, rel=tolerance)


DP = (2, ("parallel.dp_shard=2", "trainer.micro_batch_size=1"))
TP = (2, ("parallel.tp=2",))
MESHES = {"dp 2, then tp 2": (DP, TP), "1 rank, then cp 2": (ONE, (2, ("parallel.cp=2",)))}
NORMAL = ("dp 2, then tp 2",)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in NORMAL else pytest.mark.slow) for name in MESHES],
)
def test_a_run_cut_on_one_mesh_goes_on_on_another_with_the_torch_engines_numbers(
    name: str, small_samples: Path, started: tuple[str, ...], wanted: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    first.mkdir()
    for (world_size, mesh), last in zip(MESHES[name], (2, 4), strict=True):
        steps = f"trainer.max_steps={last}"
        rehearse(world_size, small_samples, (*started, *mesh, steps), first)
        assert runs.steps(first)[-1] == last
    assert_same_numbers(first, wanted, TOLERANCE)
    assert_taken_up(first, small_samples, tmp_path / "other", TOLERANCE)


def test_a_video2world_run_has_the_torch_engines_numbers(
    small_samples: Path, tmp_path: Path
) -> None:
    given = ("model.condition_mask=true", "model.objective.given_frames=[0,1]")
    model = small_config(small_samples, *SIZES, *given).model
    transformer = initialised(model, seed=0)
    add_noise(transformer)
    save_transformer(transformer, model, tmp_path / "weights")
    begin = (f"resume.path={tmp_path / 'weights'}", "trainer.max_steps=2", "optim.warmup_steps=1")
    typed = (*SIZES, *STEPS, *given, *begin)
    train(small_config(small_samples, *typed), tmp_path / "torch")
    (tmp_path / "nemo").mkdir()
    rehearse(1, small_samples, typed, tmp_path / "nemo")
    assert_same_numbers(tmp_path / "nemo", tmp_path / "torch", TOLERANCE)


def test_in_bfloat16_the_numbers_are_near_and_the_checkpoint_serves_the_other_stages(
    small_samples: Path, started: tuple[str, ...], wanted: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    first.mkdir()
    showing = "trainer.preview_every=4"
    rehearse(1, small_samples, (*started, "parallel.precision=bf16", showing), first)
    assert_same_numbers(first, wanted, 2e-2)
    assert_taken_up(first, small_samples, tmp_path / "other", 2e-3)
    assert [path.suffix for path in generate(first, tmp_path / "out")] == [".mp4"]
    pictures = {path.name for path in (first / "previews").glob("*.png")}
    assert pictures == {"data.png", "step_000000.png", "step_000004.png"}


def test_a_preempted_run_is_saved_at_the_end_of_its_step(
    small_samples: Path, tmp_path: Path
) -> None:
    rehearse(1, small_samples, SIZES, tmp_path, case="train_until_stopped")
    assert runs.steps(tmp_path) == [1]
    assert (tmp_path / "said.txt").read_text() == (
        f"stopped by a signal at step 1 of {tmp_path}; the same command goes on from there"
    )


def test_a_step_that_is_not_finite_ends_the_run(small_samples: Path, tmp_path: Path) -> None:
    wild = (*SIZES, PRECISE, "optim.lr=1e30", "trainer.save_every=1")
    rehearse(1, small_samples, wild, tmp_path, case="train_and_tell")
    assert (tmp_path / "said.txt").read_text() == (
        "step 2 has loss inf and gradient norm nan, and engine=nemo skips no steps; "
        "lower optim.lr, or use engine=torch"
    )
    assert runs.steps(tmp_path) == [1]
