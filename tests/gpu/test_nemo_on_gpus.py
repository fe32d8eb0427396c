"""engine=nemo where it trains: one GPU with Transformer Engine, and every layout on two."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from small_runs import SAMPLES

HAS_NEMO = importlib.util.find_spec("nemo") and importlib.util.find_spec("transformer_engine")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not HAS_NEMO, reason="NeMo or Transformer Engine is not installed"),
]
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="less than two CUDA devices")
# Transformer Engine's attention wants heads of a multiple of 8 channels
SETTINGS = (
    *("model.num_heads=4", "model.head_dim=32", "model.num_layers=4"),
    *("trainer.micro_batch_size=1", "trainer.save_every=3", "log.report=false"),
)
ON_ONE = {
    "bf16": "",
    "all recomputed": "parallel.recompute=full",
    "part recomputed": "parallel.recompute=full parallel.recompute_except=2",
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


def train(samples: Path, run: Path, overrides: str, ranks: int = 1, steps: int = 6) -> list[float]:
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
    return train(small_samples, folder, "parallel.precision=fp32")


@pytest.fixture(scope="module")
def one(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of engine=nemo on one GPU."""
    folder = tmp_path_factory.mktemp("one") / "run"
    train(small_samples, folder, "engine=nemo")
    return folder


def test_bfloat16_is_no_further_from_float32_than_in_the_torch_engine(
    small_samples: Path, tmp_path: Path, exact: list[float], one: Path
) -> None:
    other = train(small_samples, tmp_path / "torch", "parallel.precision=bf16")
    errors = [
        max(abs(a - b) / abs(b) for a, b in zip(found, exact, strict=True))
        for found in (numbers(one), other)
    ]
    assert errors[0] < 2 * errors[1] + 1e-4


@pytest.mark.parametrize("name", ON_ONE)
def test_a_run_comes_to_the_same_numbers(
    name: str, small_samples: Path, tmp_path: Path, one: Path
) -> None:
    found = train(small_samples, tmp_path / "run", f"engine=nemo {ON_ONE[name]}")
    assert found == pytest.approx(numbers(one), rel=1e-3)


def test_fp8_trains(small_samples: Path, tmp_path: Path, one: Path) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no FP8")
    typed = "engine=nemo engine.fp8=delayed"
    found = train(small_samples, tmp_path / "run", typed)
    assert found[0::2] == pytest.approx(numbers(one)[0::2], rel=0.05)


def test_a_run_goes_on_where_it_was_cut(small_samples: Path, tmp_path: Path, one: Path) -> None:
    run = tmp_path / "run"
    train(small_samples, run, "engine=nemo", steps=3)
    found = train(small_samples, run, "engine=nemo", steps=6)
    assert found == pytest.approx(numbers(one), rel=1e-3)


@needs_two
@pytest.mark.parametrize("name", ON_TWO)
def test_two_ranks_come_to_the_numbers_of_one(
    name: str, small_samples: Path, tmp_path: Path, one: Path
) -> None:
    found = train(small_samples, tmp_path / "run", f"engine=nemo {ON_TWO[name]}", ranks=2)
    assert found == pytest.approx(numbers(one), rel=5e-3)


@needs_two
def test_a_run_of_two_ranks_goes_on_on_one(small_samples: Path, tmp_path: Path, one: Path) -> None:
    run = tmp_path / "run"
    train(small_samples, run, f"engine=nemo {ON_TWO['tp 2']}", ranks=2, steps=3)
    found = train(small_samples, run, "engine=nemo", steps=6)
    assert found == pytest.approx(numbers(one), rel=5e-3)


@needs_two
def test_megatron_fsdp_trains(small_samples: Path, tmp_path: Path, one: Path) -> None:
    typed = "engine=nemo engine.megatron_fsdp=true parallel=fsdp trainer.save_every=0"
    found = train(small_samples, tmp_path / "run", typed, ranks=2)
    assert found == pytest.approx(numbers(one), rel=5e-3)
