"""What of the forward pass is kept for the backward pass, by name.

Selective policies are PyTorch's: each operation is kept or computed again. For torch.compile they
are orders: left to prefer, it keeps more than fits.
"""

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from cosmos_hydra.config import ParallelConfig, Recompute
from cosmos_hydra.engines.torch import flash4  # noqa: F401 (makes its operator known)
from cosmos_hydra.engines.torch.offload import Offload

aten = torch.ops.aten
ATTENTION = {
    torch.ops.cosmos_hydra.flash4.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
}
PRODUCTS = {aten.mm.default, aten._scaled_mm.default}
MATMUL = PRODUCTS | {aten.addmm.default, aten.bmm.default}


def apply_recompute(transformer: Any, parallel: ParallelConfig, device: torch.device) -> None:
    """Make blocks forget activations and compute them again in the backward pass.

    Names and classes of modules stay as they are.
    """
    blocks = list(transformer.transformer_blocks)
    if parallel.recompute is not Recompute.none:
        # nothing in a block is random
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        if parallel.compile or parallel.recompute is not Recompute.full:
            options["context_fn"] = _contexts(parallel.recompute)
        recomputing = _recomputing(type(blocks[0]).forward, options)
        # the last blocks' activations are gone before most gradients come
        for block in blocks[: max(0, len(blocks) - parallel.recompute_except)]:
            # within FSDP's hooks, so that the weights are gathered
            block.forward = MethodType(recomputing, block)
    if parallel.offload_activations and device.type == "cuda":
        offload = Offload(device)
        for block in blocks:
            block.forward = partial(_offloaded, block.forward, offload=offload, block=block)


def _recomputing(forward: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """Return `forward`, recomputed; one function for all blocks, so that it is compiled once."""

    # torch.compile looks into a function of ours that calls `checkpoint`, and not into `checkpoint`
    def recomputed(block: nn.Module, *inputs: Any) -> Any:
        return checkpoint(forward, block, *inputs, **options)

    return recomputed


def _contexts(recompute: Recompute) -> Callable[[], Any]:
    def choose(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
        is_kept = _keeps(recompute, operation, arguments)
        return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.MUST_RECOMPUTE

    return partial(create_selective_checkpoint_contexts, choose)


def _keeps(recompute: Recompute, operation: Any, arguments: tuple[Any, ...]) -> bool:
    """Return whether the result of an operation is kept."""
    if recompute is Recompute.full:
        return False
    if recompute is Recompute.save_matmul:
        return operation in ATTENTION | MATMUL
    if operation in ATTENTION:  # over the text it is computed again in a moment
        q_BNLK, k_BNTK, *_ = arguments
        return bool(q_BNLK.shape[2] == k_BNTK.shape[2])
    if recompute is Recompute.save_mlp and operation in PRODUCTS:
        # longer sums than results have channels: the MLP's second product
        left_MK, right_KD, *_ = arguments
        return bool(left_MK.shape[1] > right_KD.shape[1])
    return False


def _offloaded(
    forward: Callable[..., Any], *inputs: Any, offload: Offload, block: nn.Module
) -> Any:
    _, *shared = inputs  # every block gets the same text, time and positions
    stay = [leaf for leaf in tree_leaves(shared) if isinstance(leaf, torch.Tensor)]
    with offload.around([*stay, *block.parameters()]):
        return forward(*inputs)
