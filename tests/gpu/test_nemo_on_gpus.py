"""engine=nemo where it trains: one GPU with Transformer Engine, and every layout on two.

Runs on one GPU share this process, since to import NeMo takes longer than they do.
"""

import importlib.util
import json
import logging
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import SMALL
from small_runs import SAMPLES, small_config

from cosmos_hydra import runs
from cosmos_hydra.data.store import open_store
from cosmos_hydra.engines.torch.mesh import join
from cosmos_hydra.stages.post_train import trainer_of

HAS_NEMO = importlib.util.find_spec("nemo") and importlib.util.find_spec("transformer_engine")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not HAS_NEMO, reason="NeMo or Transformer Engine is not installed"),
]
logger = logging.getLogger(__name__)
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="less than two CUDA devices")
CUDA = torch.device("cuda")
PRECISION = Path(__file__).parents[2] / "benchmarks" / "nemo_precision.py"
# Transformer Engine's attention wants heads of a multiple of 8 channels
SETTINGS = (
    *("model.num_heads=4", "model.head_dim=32", "model.num_layers=4"),
    *("trainer.micro_batch_size=1", "trainer.save_every=3", "log.report=false"),
)
NEMO = "engine.name=nemo"
ON_ONE = {
    "all recomputed": ("parallel.recompute=full",),
    "part recomputed": ("parallel.recompute=full", "parallel.recompute_except=2"),
}
FP8 = {
    "delayed": ("engine.fp8=delayed",),
    "tensorwise": ("engine.fp8=tensorwise",),
    "delayed, all recomputed": ("engine.fp8=delayed", "parallel.recompute=full"),
}
ON_TWO = {
    "tp 2": "parallel=fsdp_tp parallel.tp=2",
    "tp 2, no sequence parallelism": "parallel=fsdp_tp parallel.tp=2 "
    "parallel.sequence_parallel=false",
    "dp 2": "parallel=fsdp",
    "two copies": "parallel=ddp",
    "cp 2": "parallel=fsdp_cp parallel.cp=2",
}


def numbers(run: Path) -> list[float]:
    """Return the training losses and gradient norms of a run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if "loss" in row for name in ("loss", "grad_norm")]


def train_here(samples: Path, run: Path, *overrides: str, steps: int = 6) -> list[float]:
    """Train in this process and return the numbers."""
    run.mkdir(exist_ok=True)
    config = small_config(samples, *SETTINGS, f"trainer.max_steps={steps}", *overrides)
    try:
        trainer_of(config)(config, run, open_store(config.data.path), join(config, CUDA)).train()
    finally:
        if config.engine.name == "nemo":
            leave_megatron()
    return numbers(run)


def leave_megatron() -> None:
    """Undo what NeMo's strategy has set up for the whole process."""
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator

    parallel_state.destroy_model_parallel()
    destroy_num_microbatches_calculator()
    if dist.is_initialized():
        dist.destroy_process_group()


def train(samples: Path, run: Path, overrides: str, ranks: int, steps: int = 6) -> list[float]:
    """Train in processes of their own and return the numbers."""
    start = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    command = [
        *(sys.executable, *start, "-m", "cosmos_hydra", "stage=post_train", *SMALL, *SETTINGS),
        *(f"data.path={samples / SAMPLES}", f"paths.runs={run.parent}", f"name={run.name}"),
        *(f"trainer.max_steps={steps}", *overrides.split()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return numbers(run)


@pytest.fixture(scope="module")
def exact(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Return the numbers of the torch engine in float32."""
    folder = tmp_path_factory.mktemp("exact") / "run"
    return train_here(small_samples, folder, "parallel.precision=fp32")


@pytest.fixture(scope="module")
def one(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Return the numbers of engine=nemo on one GPU."""
    return train_here(small_samples, tmp_path_factory.mktemp("one") / "run", NEMO)


def test_bfloat16_is_no_further_from_float32_than_in_the_torch_engine(
    small_samples: Path, tmp_path: Path, exact: list[float], one: list[float]
) -> None:
    other = train_here(small_samples, tmp_path / "torch", "parallel.precision=bf16")
    errors = [
        max(abs(a - b) / abs(b) for a, b in zip(found, exact, strict=True))
        for found in (one, other)
    ]
    logger.info(f"nemo {errors[0]:.2e}, torch {errors[1]:.2e}")  # shown with --log-cli-level=info
    assert errors[0] < 2 * errors[1] + 1e-4


def test_eight_layers_at_full_width_are_no_further_from_float32(tmp_path: Path) -> None:
    command = [sys.executable, str(PRECISION), "--layers=8", "--frames=17", "model=7b"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    _, other, found = map(json.loads, lines)
    logger.info(f"nemo {found}, torch {other}")
    for name in ("prediction", "gradient"):
        assert found[name] < 1.05 * other[name]
    assert found["loss"] < 2 * other["loss"] + 1e-4


@pytest.mark.parametrize("name", ON_ONE)
def test_a_run_comes_to_the_same_numbers(
    name: str, small_samples: Path, tmp_path: Path, one: list[float]
) -> None:
    found = train_here(small_samples, tmp_path / "run", NEMO, *ON_ONE[name])
    assert found == pytest.approx(one, rel=1e-3)


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Return overrides for made-up samples of 32 tokens, a number that FP8 can multiply."""
    folder = tmp_path_factory.mktemp("even")
    typed = ("data.height=64", f"data.path={folder / 'samples'}")
    make_samples = runpy.run_path(str(PRECISION.with_name("mesh_step.py")))["make_samples"]
    make_samples(small_config(folder, *typed))
    return typed


@pytest.fixture(scope="module")
def one_even(even: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Return the numbers of engine=nemo in bfloat16 on those."""
    folder = tmp_path_factory.mktemp("one_even")
    return train_here(folder, folder / "run", NEMO, *even)


@pytest.mark.parametrize("name", FP8)
def test_fp8_trains(
    name: str, even: tuple[str, ...], one_even: list[float], tmp_path: Path
) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no FP8")
    found = train_here(tmp_path, tmp_path / "run", NEMO, *even, *FP8[name])
    assert found != one_even
    assert found[0::2] == pytest.approx(one_even[0::2], rel=0.05)


def test_a_run_goes_on_where_it_was_cut(
    small_samples: Path, tmp_path: Path, one: list[float]
) -> None:
    run = tmp_path / "run"
    train_here(small_samples, run, NEMO, steps=3)
    found = train_here(small_samples, run, NEMO, steps=6)
    assert runs.steps(run)[-1] == 6
    assert found == pytest.approx(one, rel=1e-3)


@needs_two
@pytest.mark.parametrize("name", ON_TWO)
def test_two_ranks_come_to_the_numbers_of_one(
    name: str, small_samples: Path, tmp_path: Path, one: list[float]
) -> None:
    found = train(small_samples, tmp_path / "run", f"engine=nemo {ON_TWO[name]}", ranks=2)
    assert found == pytest.approx(one, rel=5e-3)


@needs_two
def test_a_run_of_two_ranks_goes_on_on_one(
    small_samples: Path, tmp_path: Path, one: list[float]
) -> None:
    run = tmp_path / "run"
    train(small_samples, run, f"engine=nemo {ON_TWO['tp 2']}", ranks=2, steps=3)
    found = train(small_samples, run, "engine=nemo", ranks=1, steps=6)
    assert found == pytest.approx(one, rel=5e-3)


@needs_two
def test_megatron_fsdp_trains(small_samples: Path, tmp_path: Path, one: list[float]) -> None:
    typed = "engine=nemo engine.megatron_fsdp=true parallel=fsdp trainer.save_every=0"
    found = train(small_samples, tmp_path / "run", typed, ranks=2)
    assert found == pytest.approx(one, rel=5e-3)
