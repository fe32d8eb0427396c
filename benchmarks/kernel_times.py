"""Where the time of a step goes, from the names of the kernels that ran on the GPU."""

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

# the first part whose words are in a kernel's name has it
PARTS = {
    "communication": ("nccl",),
    "attention": ("fmha", "flash", "sdpa", "cudnn"),
    "linears": ("gemm", "cutlass", "nvjet", "cublas", "xmma", "splitk"),
}
REST = "elementwise"
# spans around kernels, which some versions list among them
SPANS = (
    "Optimizer.",
    "## Call",
    "Torch-Compiled",
    "ProfilerStep",
    "CompiledFunction",
    "autograd::",
)


class KernelTimes:
    """Profile what runs inside; kernels alone, so that the step is hardly slower."""

    def __enter__(self) -> "KernelTimes":
        self.profile = profile(activities=[ProfilerActivity.CUDA])
        self.profile.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self.profile.__exit__(*raised)

    def split(self, step_s: float, optimizer_s: float) -> dict[str, Any]:
        """Return the seconds of each part of a step, and the kernels that took most.

        The optimizer was timed from outside; its kernels are elementwise.
        """
        kineto = self.profile.profiler.kineto_results.events()
        kernels = [
            (event.name(), event.start_ns(), event.duration_ns())
            for event in kineto
            if event.device_type() == torch.autograd.DeviceType.CUDA
            and event.duration_ns() > 0
            and not event.name().startswith(SPANS)
        ]
        return split_of(kernels, step_s, optimizer_s)


def split_of(
    kernels: list[tuple[str, int, int]], step_s: float, optimizer_s: float
) -> dict[str, Any]:
    """Return the split of kernels given by name, start and duration in ns."""
    parts = dict.fromkeys([*PARTS, REST], 0.0)
    names: dict[str, float] = {}
    busy_s, until = 0.0, 0
    for name, start, duration in sorted(kernels, key=lambda kernel: kernel[1]):
        parts[part_of(name)] += duration / 1e9
        names[name] = names.get(name, 0.0) + duration / 1e9
        end = start + duration
        busy_s += max(0, end - max(start, until)) / 1e9  # streams overlap
        until = max(until, end)
    parts[REST] -= optimizer_s
    parts |= {"optimizer": optimizer_s, "idle": step_s - busy_s}
    most = sorted(names.items(), key=lambda item: -item[1])[:15]
    return {
        **{name: round(seconds, 3) for name, seconds in parts.items()},
        "kernels": [[name[:110], round(seconds, 3)] for name, seconds in most],
    }


def part_of(kernel: str) -> str:
    """Return what a kernel works for."""
    if kernel.startswith("triton_"):
        return REST  # named after all that it replaces
    found = (part for part, words in PARTS.items() if any(w in kernel.lower() for w in words))
    return next(found, REST)
