"""Keep what blocks save for the backward pass in main memory.

Copies go out on a stream of their own while the GPU computes on. What several blocks share (the
position tables) and what is small stays on the GPU.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.autograd.graph import saved_tensors_hooks

from cosmos_hydra.engines.torch.parts import local

SMALLEST_BYTES = 1 << 20


@dataclass(frozen=True)
class _Moved:
    """A tensor in main memory; complete once the event has passed."""

    host: torch.Tensor
    event: torch.cuda.Event | None


class Offload:
    """Move saved tensors of one model off its device and back."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def around(self, stay: Iterable[torch.Tensor]) -> Iterator[None]:
        """Move what is saved in this context, but for views of the tensors that stay."""
        kept = {local(tensor).untyped_storage().data_ptr() for tensor in stay}

        def pack(tensor: torch.Tensor) -> torch.Tensor | _Moved:
            if type(tensor) is not torch.Tensor or tensor.nbytes < SMALLEST_BYTES:
                return tensor
            return tensor if tensor.untyped_storage().data_ptr() in kept else self._out(tensor)

        with saved_tensors_hooks(pack, self._back):
            yield

    def _out(self, tensor: torch.Tensor) -> _Moved:
        is_pinned = self.stream is not None
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=is_pinned)
        if self.stream is None:
            return _Moved(host.copy_(tensor), None)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            host.copy_(tensor, non_blocking=True)
            event = self.stream.record_event()
        # its memory is not used again before the copy has been made
        tensor.record_stream(self.stream)
        return _Moved(host, event)

    def _back(self, saved: torch.Tensor | _Moved) -> torch.Tensor:
        if isinstance(saved, torch.Tensor):
            return saved
        if saved.event is not None:
            torch.cuda.current_stream(self.device).wait_event(saved.event)
        return saved.host.to(self.device, non_blocking=True)
