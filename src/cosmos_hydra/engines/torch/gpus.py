"""GPUs that a run can be planned for: memory and the rates that their kernels reach.

Rates are of bfloat16 on clips of tens of thousands of tokens with heads of 128 channels.
"""

from dataclasses import dataclass

from cosmos_hydra.config import Attention, PlannedGpu


@dataclass(frozen=True)
class Rates:
    """What one GPU reaches in a long run; TFLOP/s, TB/s, GB/s in one direction."""

    memory_gb: float  # 1e9 bytes that programs can take
    linears: float  # matrix products
    float8: float  # the same with 8-bit inputs, their rounding aside; 0 = it cannot
    attention: dict[Attention, tuple[float, float]]  # forward, backward; auto's first
    memory_tb_per_s: float
    link_gb_per_s: float  # to the other GPUs of the host


# at 56,320 tokens, measured on an H200 with torch 2.11+cu130 (benchmarks/attention_kernels.py); the
# backward pass counts five products
HOPPER = {
    Attention.cudnn: (611.0, 541.0),
    Attention.flash4: (660.0, 616.0),
    Attention.flash: (359.0, 321.0),
}
RATES = {
    # 143,771 MiB. Linear layers as measured within a step (8192^3 alone: 631 to 797); HBM3e has 4.8
    # TB/s, of which elementwise kernels reach five sixths
    PlannedGpu.h200: Rates(150.7, 715, 1400, HOPPER, 4.0, 350),
    # the same chip with 81,559 MiB and HBM3 of 3.35 TB/s
    PlannedGpu.h100: Rates(85.5, 715, 1400, HOPPER, 2.8, 350),
    # 81,920 MiB, HBM2e of 2.0 TB/s, 312 TFLOP/s by data sheet; attention by arXiv 2307.08691
    PlannedGpu.a100: Rates(85.9, 250, 0, {Attention.flash: (225.0, 195.0)}, 1.7, 250),
}
