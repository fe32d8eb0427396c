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
        # nothing in a block is random
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        if parallel.recompute in KEPT:
            options["context_fn"] = _contexts(KEPT[parallel.recompute])
        # the last blocks' activations are gone before most gradients come
        for block in blocks[: max(0, len(blocks) - parallel.recompute_except)]:
            # within FSDP's hooks, so that the weights are gathered; torch.compile knows this form
            block.forward = partial(checkpoint, block.forward, **options)
    if parallel.offload_activations and device.type == "cuda":
        offload = Offload(device)
        for block in blocks:
            block.forward = partial(_offloaded, block.forward, offload=offload, block=block)


def _contexts(kept: set[Any]) -> Callable[[], Any]:
    def choose(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
        keep = operation in kept
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return partial(create_selective_checkpoint_contexts, choose)


def _offloaded(
    forward: Callable[..., Any], *inputs: Any, offload: Offload, block: nn.Module
) -> Any:
    _, *shared = inputs  # every block gets the same text, time and positions
    stay = [leaf for leaf in tree_leaves(shared) if isinstance(leaf, torch.Tensor)]
    with offload.around([*stay, *block.parameters()]):
        return forward(*inputs)
