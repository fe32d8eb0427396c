"""What of the forward pass is kept for the backward pass, by name."""

from typing import Any

from cosmos_hydra.config import ParallelConfig, Recompute


def apply_recompute(transformer: Any, parallel: ParallelConfig) -> None:
    """Make blocks forget activations and compute them again in the backward pass."""
    if parallel.recompute is Recompute.full:
        transformer.enable_gradient_checkpointing()
