"""FlashAttention 4 (package flash-attn-4) as operators, which recompute and compile know by name.

On Hopper it is the fastest kernel, forward and backward (docs/performance.md). PyTorch has a hook
for it, but fixed to the signatures of a few of the package's versions.
Legend: B batch, N heads, L tokens, T tokens attended to, K head dim.
"""

import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module, metadata
from typing import Any

import torch

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def is_installed() -> bool:
    """Return whether the package is there; older ones of other names share its folder."""
    try:
        metadata.version("flash-attn-4")
    except metadata.PackageNotFoundError:
        return False
    return True


@cache
def kernels() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the package's forward and backward pass, on [B, tokens, N, K].

    Raises: ImportError when it is not installed.
    """
    # its compiler's word on arguments of its own
    warnings.filterwarnings("ignore", "Argument aux_data", UserWarning)
    # its public function hides the sums that a backward pass of ours needs
    interface = import_module("flash_attn.cute.interface")
    return interface._flash_attn_fwd, interface._flash_attn_bwd


def attend(q_BNLK: torch.Tensor, k_BNTK: torch.Tensor, v_BNTK: torch.Tensor) -> torch.Tensor:
    """Return softmax attention without a mask, [B, N, L, K], in bf16 or fp16 on CUDA.

    Under autocast inputs become bf16.
    """
    return flash4(q_BNLK, k_BNTK, v_BNTK)[0]


@torch.library.custom_op("cosmos_hydra::flash4", mutates_args=())
def flash4(
    q_BNLK: torch.Tensor, k_BNTK: torch.Tensor, v_BNTK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention, [B, N, L, K], and its rows' log-sum-exp, float32 [B, N, L]."""
    forward, _ = kernels()
    # versions differ in what follows these two
    out_BLNK, sums_BNL, *_ = forward(*_swapped(q_BNLK, k_BNTK, v_BNTK), return_lse=True)
    return out_BLNK.transpose(1, 2), sums_BNL


@flash4.register_fake
def _(q_BNLK: torch.Tensor, k_BNTK: torch.Tensor, v_BNTK: torch.Tensor) -> Any:
    B, N, L, K = q_BNLK.shape
    sums_BNL = q_BNLK.new_empty(B, N, L, dtype=torch.float32)
    return q_BNLK.new_empty(B, L, N, K).transpose(1, 2), sums_BNL


@torch.library.custom_op("cosmos_hydra::flash4_backward", mutates_args=())
def flash4_backward(
    grad_BNLK: torch.Tensor,
    q_BNLK: torch.Tensor,
    k_BNTK: torch.Tensor,
    v_BNTK: torch.Tensor,
    out_BNLK: torch.Tensor,
    sums_BNL: torch.Tensor,
) -> Gradients:
    """Return the gradients of q, k and v."""
    _, backward = kernels()
    given = _swapped(q_BNLK, k_BNTK, v_BNTK, out_BNLK, grad_BNLK)
    dq_BLNK, dk_BTNK, dv_BTNK = backward(*given, sums_BNL)
    return dq_BLNK.transpose(1, 2), dk_BTNK.transpose(1, 2), dv_BTNK.transpose(1, 2)


@flash4_backward.register_fake
def _(grad_BNLK: torch.Tensor, *kept: torch.Tensor) -> Gradients:
    q_BNLK, k_BNTK, v_BNTK, *_ = kept
    return torch.empty_like(q_BNLK), torch.empty_like(k_BNTK), torch.empty_like(v_BNTK)


def _keep(ctx: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(context: Any, grad_BNLK: torch.Tensor, _: torch.Tensor) -> Gradients:
    return flash4_backward(grad_BNLK, *context.saved_tensors)


def _swapped(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Return views with heads after tokens; the kernels want adjacent channels."""
    views = (tensor.transpose(1, 2) for tensor in tensors)
    return [view if view.stride(-1) == 1 else view.contiguous() for view in views]


flash4.register_autograd(_differentiate, setup_context=_keep)
flash4.register_autocast("cuda", torch.bfloat16)
