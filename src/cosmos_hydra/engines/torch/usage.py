"""Peak memory of this process on its device."""

import resource

import torch


def peak_memory_gb(device: torch.device) -> float:
    """Return the most memory allocated so far, in 1e9 bytes: of PyTorch on CUDA, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts KiB
