"""Decode videos in processes of their own, which a broken or hostile file may crash or hang.

Frames arrive in shared memory, uncopied.

Legend: F frames, H W picture height/width, 3 colour channels, uint8.
"""

import math
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cosmos_hydra.data.decode_memory import MemoryPool, SharedMemory
from cosmos_hydra.data.decode_worker import Ended, Limits, Refused, UnreadableVideo, Worker

ATTEMPTS = 3  # a process may be killed from outside, as by the kernel when memory is short


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds. `start_s` has the presentation time of every frame, ascending.

    `pixel_aspect` is the width over the height of one pixel as it is to be shown.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    start_s: np.ndarray
    pixel_aspect: float = 1.0


@dataclass(frozen=True)
class FramesRequest:
    """Frames of one video, in this order; repeats are allowed."""

    path: Path
    frame_indices: tuple[int, ...]


class DecodePool:
    """Up to `workers` decoder processes, started when first needed.

    A process may take `memory_gb` (address space: 4K and 8K video fit in 4) and `time_s` for one
    request; frames of one request may take `result_gb`. Safe to use from several threads.
    """

    def __init__(
        self,
        workers: int,
        memory_gb: float = 4.0,
        time_s: float = 120.0,
        result_gb: float = 16.0,
    ) -> None:
        self.workers = workers
        self.limits = Limits(memory_gb, time_s, result_gb)
        self._all: set[Worker] = set()
        self._free: list[Worker] = []  # idle for longest first
        self._memories = MemoryPool(workers)
        self._is_closed = False
        self._change = threading.Condition()
        self._threads = ThreadPoolExecutor(workers, "decode")

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes; a request under way fails."""
        with self._change:
            self._is_closed = True
            self._change.notify_all()
            for worker in self._all:
                worker.process.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._free:
            worker.end()

    def probe(self, path: Path) -> VideoInfo:
        """Return what the file holds, decoding one frame.

        Raises: UnreadableVideo.
        """
        header, memory = self._ask(path, None)
        info = header["info"]
        start_s = self._memories.lend(memory, header["shape"], np.float64).copy()
        fps, aspect = info["fps"], info["pixel_aspect"]
        if len(start_s) > 1 and not (np.isfinite(start_s).all() and (np.diff(start_s) > 0).all()):
            raise UnreadableVideo("cannot be decoded (time stamps are wrong)")
        if not 0 < fps < math.inf:
            raise UnreadableVideo("cannot be decoded (frame rate unknown)")
        if not 0 < aspect < math.inf:
            aspect = 1.0
        return VideoInfo(len(start_s), fps, info["height"], info["width"], start_s, aspect)

    def decode(self, path: Path, frame_indices: Iterable[int]) -> np.ndarray:
        """Return the frames asked for and no others, uint8 [F, H, W, 3], in shared memory.

        The memory is used again once no array or tensor looks into it.

        Raises: UnreadableVideo.
        """
        header, memory = self._ask(path, [int(index) for index in frame_indices])
        return self._memories.lend(memory, header["shape"], np.uint8)

    def read_ahead(
        self, requests: Iterable[FramesRequest], depth: int | None = None
    ) -> Iterator[tuple[FramesRequest, np.ndarray | UnreadableVideo]]:
        """Yield every request with its frames, or with why there are none, in the order given.

        While the caller has one result, at most `depth` others (as many as workers, unless given)
        wait or are being made; `requests` is read no further ahead either.
        """
        waiting: deque[tuple[FramesRequest, Future[np.ndarray]]] = deque()
        try:
            for request in requests:
                frames = self._threads.submit(self.decode, request.path, request.frame_indices)
                waiting.append((request, frames))
                if len(waiting) > (depth or self.workers):
                    yield _outcome(*waiting.popleft())
            while waiting:
                yield _outcome(*waiting.popleft())
        finally:
            for _, frames in waiting:
                frames.cancel()

    def _ask(self, path: Path, indices: list[int] | None) -> tuple[dict[str, Any], SharedMemory]:
        name = os.fsencode(path.absolute()).decode("utf-8", "surrogateescape")
        request = {"path": name, "indices": indices}
        for _ in range(ATTEMPTS):
            try:
                return self._try(request)
            except Ended as error:
                how = str(error)
        raise UnreadableVideo(f"decoder crashed ({how})")

    def _try(self, request: dict[str, Any]) -> tuple[dict[str, Any], SharedMemory]:
        worker = self._take(request["path"])
        is_sound = False
        try:
            answer = worker.ask(request)
            is_sound = True
            return answer
        except Refused as error:
            is_sound = True
            raise UnreadableVideo(str(error)) from None
        finally:
            self._give_back(worker, is_sound)

    def _take(self, path: str) -> Worker:
        with self._change:
            while not self._free and len(self._all) == self.workers:
                self._change.wait()
            if self._is_closed:
                raise UnreadableVideo("decoding was stopped")
            if not self._free:
                worker = Worker(path, self.limits, self._memories)
                self._all.add(worker)
                return worker
            # the one that has this file open, else the one idle for longest
            same = (worker for worker in self._free if worker.path == path)
            worker = next(same, self._free[0])
            self._free.remove(worker)
            worker.path = path
            return worker

    def _give_back(self, worker: Worker, is_sound: bool) -> None:
        if not is_sound:
            worker.end()
        with self._change:
            if is_sound:
                self._free.append(worker)
            else:
                self._all.remove(worker)
            self._change.notify()


def _outcome(
    request: FramesRequest, frames: "Future[np.ndarray]"
) -> tuple[FramesRequest, np.ndarray | UnreadableVideo]:
    try:
        return request, frames.result()
    except UnreadableVideo as error:
        return request, error
