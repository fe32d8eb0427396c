"""Which of several processes this is; rank 0 alone writes the run directory and speaks.

Whoever starts several (torchrun) sets RANK and WORLD_SIZE. Imports nothing slow.
"""

import os


def rank() -> int:
    """Return this process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return this process's number on its host, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    """Return whether this is rank 0, or the only process."""
    return rank() == 0


def use_expandable_segments() -> None:
    """Have PyTorch's CUDA allocator grow its segments, which leaves fewer gaps; before torch."""
    if "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
