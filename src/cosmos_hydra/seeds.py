"""Randomness as a function of (seed, what it is for), never a global generator.

So no result depends on the order of calls, on the number of ranks or on a resume.
"""

import hashlib

import numpy as np
import torch


def seed_of(*key: int | float | str) -> int:
    """Return a 63-bit seed that is a fixed function of the key."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(*key: int | float | str) -> torch.Generator:
    """Return a CPU generator for the key; draw on the CPU, then move to the device."""
    return torch.Generator().manual_seed(seed_of(*key))


def numpy_generator(*key: int | float | str) -> np.random.Generator:
    """Return a numpy generator for the key."""
    return np.random.default_rng(seed_of(*key))
