"""What of the forward pass is kept for the backward pass, by name.

Selective policies are PyTorch's: each operation is kept or computed again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from cosmos_hydra.config import ParallelConfig, Recompute
from cosmos_hydra.engines.torch.offload import Offload

aten = torch.ops.aten
ATTENTION = {
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
}
MATMUL = {aten.mm.default, aten.addmm.default, aten.bmm.default}
KEPT = {
    Recompute.save_attention: ATTENTION,
    Recompute.save_matmul: ATTENTION | MATMUL,
}


def apply_recompute(transformer: Any, parallel: ParallelConfig, device: torch.device) -> None:
    """Make blocks forget activations and compute them again in the backward pass.

    Names and classes of modules stay as they are.
    """
    blocks = list(transformer.transformer_blocks)
    if parallel.recompute is not Recompute.none:
        contexts = _contexts(parallel.recompute)
        # the last blocks' activations are gone before most gradients come
        for block in blocks[: len(blocks) - parallel.recompute_except]:
            _wrap(block, partial(_checkpointed, contexts=contexts))
    if parallel.offload_activations and device.type == "cuda":
        offload = Offload(device)
        for block in blocks:
            _wrap(block, partial(_offloaded, offload=offload, block=block))


def _contexts(policy: Recompute) -> Callable[[], Any]:
    if policy is Recompute.full:
        return noop_context_fn
    kept = KEPT[policy]

    def choose(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
        keep = operation in kept
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return partial(create_selective_checkpoint_contexts, choose)


def _wrap(block: nn.Module, around: Callable[..., Any]) -> None:
    # within FSDP's hooks: recomputing finds the weights gathered
    block.forward = partial(around, block.forward)


def _checkpointed(forward: Callable[..., Any], *inputs: Any, contexts: Callable[[], Any]) -> Any:
    # nothing in a block is random
    return checkpoint(
        forward, *inputs, use_reentrant=False, context_fn=contexts, preserve_rng_state=False
    )


def _offloaded(
    forward: Callable[..., Any], *inputs: Any, offload: Offload, block: nn.Module
) -> Any:
    _, *shared = inputs  # every block gets the same text, time and positions
    stay = [leaf for leaf in tree_leaves(shared) if isinstance(leaf, torch.Tensor)]
    with offload.around([*stay, *block.parameters()]):
        return forward(*inputs)
