"""Which of several processes this is; rank 0 alone writes the run directory and speaks.

Whoever starts several (torchrun) sets RANK and WORLD_SIZE; srun has names of its own. Imports
nothing slow.
"""

import os
import re


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


def adopt_slurm() -> None:
    """Set what torchrun would, where srun has started one task for each rank.

    Counted are the tasks of the step: a batch script itself is no step, and one process.
    """
    if "RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_JOB_NODELIST"]
    # below the ports that Linux gives to connections
    port = 20000 + int(os.environ["SLURM_JOB_ID"]) % 10000
    os.environ.setdefault("MASTER_ADDR", first_host(nodes))
    os.environ.setdefault("MASTER_PORT", str(port))
    os.environ |= {
        "RANK": os.environ["SLURM_PROCID"],
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "WORLD_SIZE": os.environ["SLURM_STEP_NUM_TASKS"],
    }


def first_host(nodes: str) -> str:
    """Return the first name of a list as Slurm writes it, such as r[1-2]n[07-12],login."""
    found = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", found[0]) if found else nodes


def use_expandable_segments() -> None:
    """Have PyTorch's CUDA allocator grow its segments, which leaves fewer gaps; before torch."""
    if "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
