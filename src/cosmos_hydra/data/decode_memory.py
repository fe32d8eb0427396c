"""Memory shared with decoder processes, used again when nobody looks into it any more.

Fresh pages cost about as much as decoding the pixels that go into them.
"""

import ctypes
import fcntl
import mmap
import os
import threading
import weakref
from typing import Any

import numpy as np


class SharedMemory:
    """A file in memory whose size nobody can change, and so pull it from under another."""

    def __init__(self, size_bytes: int) -> None:
        self.fd = os.memfd_create("frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self.fd)
        os.ftruncate(self.fd, size_bytes)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        self.size_bytes, self.mapped = size_bytes, mmap.mmap(self.fd, size_bytes)


class MemoryPool:
    """Lends memory as arrays and keeps up to `spare` pieces that came back."""

    def __init__(self, spare: int) -> None:
        self._max_spare = spare
        self._spare: list[SharedMemory] = []
        # reentrant: the collector may give back a piece while this thread is in here
        self._lock = threading.RLock()

    def take(self, size_bytes: int) -> SharedMemory:
        """Return at least so much memory; what it holds is left from before."""
        # by powers of two, so that many pieces fit; pages never touched take no memory
        size_bytes = max(mmap.PAGESIZE, 1 << (size_bytes - 1).bit_length())
        with self._lock:
            for memory in self._spare:
                if memory.size_bytes == size_bytes:
                    self._spare.remove(memory)
                    return memory
        return SharedMemory(size_bytes)

    def give_back(self, memory: SharedMemory) -> None:
        """Keep a piece for later, in place of the one that waits longest if there are many."""
        with self._lock:
            self._spare.append(memory)
            del self._spare[: -self._max_spare]

    def lend(self, memory: SharedMemory, shape: list[int], dtype: Any) -> np.ndarray:
        """Return a piece as an array; it comes back when no array or tensor looks into it."""
        count = int(np.prod(shape, dtype=np.int64))
        window = (ctypes.c_uint8 * (count * np.dtype(dtype).itemsize)).from_buffer(memory.mapped)
        weakref.finalize(window, self.give_back, memory).atexit = False
        return np.frombuffer(window, dtype).reshape(shape)
