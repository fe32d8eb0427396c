"""Frames on their way to the GPU: reused pinned buffers, a copy stream and a thread of its own.

Legend: F frames, H W height/width, C colours.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch

from cosmos_hydra.data.ahead import Decoded
from cosmos_hydra.data.clips import Clip
from cosmos_hydra.data.spent import Spent, timed
from cosmos_hydra.data.video import UnreadableVideo

FRAMES_AHEAD = 2  # clips whose frames lie on the device


class Slot:
    """Room for one clip's frames, pinned on the host and on the device."""

    def __init__(self, device: torch.device, stream: torch.cuda.Stream) -> None:
        self.device, self.stream = device, stream
        self.host = self.there = self.frames = torch.empty(0, dtype=torch.uint8)
        self.copied, self.free = torch.cuda.Event(), torch.cuda.Event()

    def fill(self, frames_FHWC: torch.Tensor, spent: Spent) -> None:
        """Begin to copy frames to the device."""
        size_bytes = frames_FHWC.numel()
        self.copied.synchronize()
        if self.host.numel() < size_bytes:
            self.host = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
            self.there = torch.empty(size_bytes, dtype=torch.uint8, device=self.device)
        with spent.on("copy to pinned memory"):
            self.host[:size_bytes].view(frames_FHWC.shape).copy_(frames_FHWC)
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(self.free)
            self.there[:size_bytes].copy_(self.host[:size_bytes], non_blocking=True)
            self.copied.record()
        self.frames = self.there[:size_bytes].view(frames_FHWC.shape)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let what the current stream is given in the block have the frames."""
        torch.cuda.current_stream(self.device).wait_event(self.copied)
        yield
        self.free.record(torch.cuda.current_stream(self.device))


class Uploader:
    """Iterate clips with their frames on the device; a thread copies those to come.

    A slot is filled again when the next item is asked for.
    """

    def __init__(self, decoded: Iterable[Decoded], device: torch.device, spent: Spent) -> None:
        self.decoded, self.spent = decoded, spent
        self.empty: SimpleQueue[Slot | None] = SimpleQueue()
        self.full: SimpleQueue[Any] = SimpleQueue()
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            for _ in range(FRAMES_AHEAD):
                self.empty.put(Slot(device, stream))
        self.device, self.is_stopped = device, False
        self.thread = Thread(target=self._feed, name="upload", daemon=True)

    def __enter__(self) -> "Uploader":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.is_stopped = True
        self.empty.put(None)
        self.thread.join()

    def __iter__(self) -> Iterator[tuple[Clip, Any]]:
        while (item := self.full.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
            if isinstance(item[1], Slot):
                self.empty.put(item[1])

    def _feed(self) -> None:
        try:
            with torch.cuda.device(self.device):
                for clip, frames in timed(self.decoded, self.spent, "wait for decoders"):
                    if self.is_stopped:
                        return
                    if isinstance(frames, UnreadableVideo):
                        self.full.put((clip, frames))
                        continue
                    with self.spent.on("wait for a free slot"):
                        slot = self.empty.get()
                    if slot is None or self.is_stopped:
                        return
                    slot.fill(frames, self.spent)
                    self.full.put((clip, slot))
            self.full.put(None)
        except BaseException as error:  # noqa: BLE001 (raised again where it is read)
            self.full.put(error)
