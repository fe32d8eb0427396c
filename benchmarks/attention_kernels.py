"""Rates of attention kernels alone, forward and backward, at the length of a full-size clip.

    python benchmarks/attention_kernels.py cudnn flash flash4 --heads 32 --out kernels.jsonl

`cudnn` and `flash` are PyTorch's; `flash4` is FlashAttention 4 (package flash-attn-4). Each runs
for --seconds forward and as long backward: a short burst overstates what a warm card sustains.
`apart` is how far output and gradients are from cuDNN's on a shorter input, relative to their size.
Legend: B batch, N heads, L tokens, K head dim.
"""

import argparse
import json
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

HEAD_DIM = 128
SHORT = 2048
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def of_pytorch(
    backend: SDPBackend, q_BNLK: torch.Tensor, k_BNLK: torch.Tensor, v_BNLK: torch.Tensor
) -> torch.Tensor:
    """Return PyTorch's attention by one of its kernels."""
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(q_BNLK, k_BNLK, v_BNLK)


def of_flash4(q_BNLK: torch.Tensor, k_BNLK: torch.Tensor, v_BNLK: torch.Tensor) -> torch.Tensor:
    """Return FlashAttention 4's, which wants heads after tokens."""
    from flash_attn.cute import flash_attn_func  # type: ignore[import-not-found,unused-ignore]

    out = flash_attn_func(*(x.transpose(1, 2) for x in (q_BNLK, k_BNLK, v_BNLK)))
    return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)


KERNELS: dict[str, Attend] = {
    "cudnn": partial(of_pytorch, SDPBackend.CUDNN_ATTENTION),
    "flash": partial(of_pytorch, SDPBackend.FLASH_ATTENTION),
    "flash4": of_flash4,
}


def inputs(heads: int, tokens: int) -> list[torch.Tensor]:
    """Return q, k, v and a gradient, as a block lays them out: tokens before heads."""
    torch.manual_seed(0)
    shape = (1, tokens, heads, HEAD_DIM)
    options: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    return [torch.randn(shape, **options).transpose(1, 2) for _ in range(4)]


def results(attend: Attend, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return output and gradients of q, k, v."""
    *qkv_BNLK, grad_BNLK = tensors
    for x_BNLK in qkv_BNLK:
        x_BNLK.requires_grad_()
    out_BNLK = attend(*qkv_BNLK)
    return [out_BNLK, *torch.autograd.grad(out_BNLK, qkv_BNLK, grad_BNLK)]


def sustained_ms(call: Callable[[], Any], seconds: float) -> float:
    """Return how long a call takes on the device, over `seconds` of them."""
    call()
    torch.cuda.synchronize()
    count, began_s = 0, time.perf_counter()
    while time.perf_counter() - began_s < seconds:
        for _ in range(4):
            call()
        count += 4
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - began_s) / count


def measured(name: str, heads: int, tokens: int, seconds: float) -> dict[str, Any]:
    """Return the row of a kernel; a backward pass counts 2.5 times the FLOPs of a forward pass."""
    attend = KERNELS[name]
    short = [results(KERNELS[kernel], inputs(heads, SHORT)) for kernel in ("cudnn", name)]
    apart = max(float(((a - b).norm() / a.norm()).detach()) for a, b in zip(*short, strict=True))
    *qkv_BNLK, grad_BNLK = inputs(heads, tokens)
    with torch.no_grad():
        forward_ms = sustained_ms(lambda: attend(*qkv_BNLK), seconds)
    for x_BNLK in qkv_BNLK:
        x_BNLK.requires_grad_()
    out_BNLK = attend(*qkv_BNLK)
    backward_ms = sustained_ms(
        lambda: torch.autograd.grad(out_BNLK, qkv_BNLK, grad_BNLK, retain_graph=True), seconds
    )
    gflop = 4 * tokens**2 * heads * HEAD_DIM / 1e9
    return {
        "forward_ms": round(forward_ms, 2),
        "backward_ms": round(backward_ms, 2),
        "forward_tflop_per_s": round(gflop / forward_ms),
        "backward_tflop_per_s": round(2.5 * gflop / backward_ms),
        "apart": round(apart, 5),
    }


def main() -> None:
    """Measure the named kernels one after the other, a JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", nargs="+", choices=KERNELS)
    parser.add_argument("--heads", type=int, default=32, help="32 is 7b, 40 is 14b")
    parser.add_argument("--tokens", type=int, default=56_320)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("attention_kernels.jsonl"))
    typed = parser.parse_args()
    for name in typed.kernels:
        row: dict[str, Any] = {"kernel": name, "heads": typed.heads, "tokens": typed.tokens}
        row["cudnn"] = torch.backends.cudnn.version()
        try:
            row |= measured(name, typed.heads, typed.tokens, typed.seconds)
        except Exception as error:  # noqa: BLE001 (the other kernels still count)
            traceback.print_exc()
            row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
        with typed.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
