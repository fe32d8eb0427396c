"""Compare what the case `compute_gradients` found in one process and in several."""

from pathlib import Path
from typing import Any

import pytest
import torch

TOLERANCE = 1e-5
Found = dict[str, Any]


def found_in(folder: Path) -> Found:
    """Return what the case saved."""
    return dict(torch.load(folder / "found.pt", weights_only=True))


def assert_same_gradients(found: Found, wanted: Found) -> tuple[str, float]:
    """Compare losses, norm and gradients; return the gradient that differs most, and how much."""
    assert found["losses"] == pytest.approx(wanted["losses"], rel=TOLERANCE)
    assert found["norm"] == pytest.approx(wanted["norm"], rel=TOLERANCE)
    assert found["gradients"].keys() == wanted["gradients"].keys()
    assert min(gradient.norm() for gradient in wanted["gradients"].values()) > 0
    errors = {
        name: ((found["gradients"][name] - gradient).norm() / gradient.norm()).item()
        for name, gradient in wanted["gradients"].items()
    }
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] < TOLERANCE, worst
    return worst, errors[worst]
