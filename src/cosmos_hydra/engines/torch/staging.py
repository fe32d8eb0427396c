"""The main memory that checkpoints are copied into, beside the next step where there is a GPU.

On CUDA it is pinned, so that copies run on a stream of their own while the next step computes; only
that step's update has to wait for them. It is made once, by a thread as training begins, since
pinning takes seconds per 10 GB. Elsewhere a copy is a plain one into the same memory each time.
"""

import logging
import mmap
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

import torch

from cosmos_hydra.engines.torch.parts import local, with_local
from cosmos_hydra.engines.torch.small_moments import as_float, is_quantised

Table = dict[str, torch.Tensor]
FOR_ALL_GPUS = 1  # cudaHostRegisterPortable
logger = logging.getLogger(__name__)


class Staging:
    """Copies of one table's tensors, of this rank's parts, in the same memory each time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # who waits for it leaves the processor to others
        self.done = torch.cuda.Event(blocking=True) if self.stream else None
        self.copies: Table = {}
        self.pinned: list[torch.Tensor] = []
        self.pool = ThreadPoolExecutor(max_workers=1)
        self.making: Future[None] | None = None
        self.is_closed = False

    def prepare(self, table: Table) -> None:
        """Begin to make room for a table; the first copy waits until it is there."""
        wanted = {
            name: (local(tensor).shape, torch.float32 if is_quantised(tensor) else tensor.dtype)
            for name, tensor in table.items()
        }
        self.making = self.pool.submit(self._make, wanted)

    def copy(self, table: Table) -> Table:
        """Return what becomes a copy in main memory, 8-bit tensors as float32.

        On CUDA it is one after `wait`, and tensors may change after `before_update`.
        """
        if self.making is None:
            self.prepare(table)
        assert self.making is not None
        self.making.result()
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream) if self.stream else nullcontext(), torch.no_grad():
            for name, tensor in table.items():
                part = as_float(tensor) if is_quantised(tensor) else local(tensor)
                self.copies[name].copy_(part, non_blocking=True)
            if self.done is not None:
                self.done.record(self.stream)
        return {name: with_local(tensor, self.copies[name]) for name, tensor in table.items()}

    def before_update(self) -> None:
        """Have the device change no tensor before its copy is done; does not block."""
        if self.done is not None:
            torch.cuda.current_stream(self.device).wait_event(self.done)

    def wait(self) -> None:
        """Block until the copies can be read."""
        if self.done is not None:
            self.done.synchronize()

    def close(self) -> None:
        """Give the memory back."""
        self.is_closed = True  # what is being made ends early
        self.pool.shutdown()
        self.wait()
        for buffer in self.pinned:
            torch.cuda.cudart().cudaHostUnregister(buffer.data_ptr())
        self.copies.clear()

    def _make(self, wanted: dict[str, tuple[torch.Size, torch.dtype]]) -> None:
        is_pinning = self.stream is not None
        # a thread begins on the first GPU
        with torch.cuda.device(self.device) if is_pinning else nullcontext():
            for name, (shape, dtype) in wanted.items():
                if self.is_closed:
                    return
                self.copies[name] = _host_tensor(shape, dtype)
                is_pinning = is_pinning and self._pin(self.copies[name])

    def _pin(self, tensor: torch.Tensor) -> bool:
        """Pin memory; say so if that does not work, and return whether it does."""
        if tensor.numel() == 0:
            return True
        register = torch.cuda.cudart().cudaHostRegister
        # PyTorch's own pinned memory is of powers of two
        status = int(register(tensor.data_ptr(), tensor.nbytes, FOR_ALL_GPUS))
        if status == 0:
            self.pinned.append(tensor)
            return True
        logger.warning(
            f"main memory for checkpoints cannot be pinned (CUDA error {status}), so each one "
            f"holds up training while it is copied; look at `ulimit -l`"
        )
        return False


def _host_tensor(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    size_bytes = shape.numel() * dtype.itemsize
    if size_bytes == 0:
        return torch.empty(shape, dtype=dtype)
    # pages of its own; shared, since a fork would copy those that are pinned
    return torch.frombuffer(mmap.mmap(-1, size_bytes), dtype=dtype).view(shape)
