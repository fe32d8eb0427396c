"""The variables of NVIDIA's guide are set where they help, and never against the user."""

import os
from pathlib import Path

import pytest
from conftest import SMALL, Command

from cosmos_hydra.engines.torch.degrees import Degrees
from cosmos_hydra.engines.torch.mesh import order_kernels

ALLOCATOR, CONNECTIONS = "PYTORCH_CUDA_ALLOC_CONF", "CUDA_DEVICE_MAX_CONNECTIONS"


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ALLOCATOR, "PYTORCH_ALLOC_CONF", CONNECTIONS):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        (Degrees(1, 1, 1, 8), "1"),
        (Degrees(2, 1, 1, 4), "1"),
        (Degrees(1, 2, 1, 4), None),
        (Degrees(1, 1, 2, 4), None),
        (Degrees(1, 8, 1, 1), None),
    ],
)
def test_kernels_are_ordered_under_tensor_parallelism_without_fsdp(
    degrees: Degrees, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_kernels(degrees)
    assert os.environ.get(CONNECTIONS) == expected
    monkeypatch.setenv(CONNECTIONS, "8")
    order_kernels(degrees)
    assert os.environ[CONNECTIONS] == "8"


def test_training_asks_for_expandable_segments(
    command: Command, small_samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ("stage=post_train", *SMALL, f"paths.samples={small_samples / 'none'}")
    command(*typed, cwd=tmp_path)
    assert os.environ[ALLOCATOR] == "expandable_segments:True"
    monkeypatch.setenv(ALLOCATOR, "max_split_size_mb:64")
    command(*typed, cwd=tmp_path)
    assert os.environ[ALLOCATOR] == "max_split_size_mb:64"
    monkeypatch.delenv(ALLOCATOR)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64")
    command(*typed, cwd=tmp_path)
    assert ALLOCATOR not in os.environ
