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
