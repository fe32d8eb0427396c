"""Decode videos in processes of their own, which a broken or hostile file may crash or hang.

Frames arrive in shared memory, uncopied. Nothing a decoder process sends is trusted: headers are
JSON of known shape, sizes are checked before memory is made, and the memory cannot be resized.

Legend: F frames, H W picture height/width, 3 colour channels, uint8.
"""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cosmos_hydra.data.decode_memory import MemoryPool, SharedMemory

MAX_HEADER_BYTES = 1 << 16
MAX_SIDE = 1 << 16  # pixels
MAX_FRAMES = 1 << 26  # of a video: half a gigabyte of time stamps
ATTEMPTS = 3  # a process may be killed from outside, as by the kernel when memory is short
END_S = 2.0  # patience with a process that was told to end
# without site: quicker, and the parent's module path holds all that it would add
PYTHON = (sys.executable, "-E", "-S", "-X", "utf8")
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from cosmos_hydra.data.decode_child import serve; serve(*json.loads(sys.argv[2]))"
)
# one thread each; freed pictures are used again instead of given back to the system
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}
INHERITED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL")


class UnreadableVideo(Exception):
    """A video file that cannot be decoded; the message is the reason, in a few words."""


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


class _Refused(Exception):
    """The reason that a decoder process gives; it is sound itself."""


class _Ended(Exception):
    """A decoder process ended by itself; the message says how."""


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
        self.limits = _Limits(memory_gb, time_s, result_gb)
        self._all: set[_Worker] = set()
        self._free: list[_Worker] = []  # idle for longest first
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
            except _Ended as error:
                how = str(error)
        raise UnreadableVideo(f"decoder crashed ({how})")

    def _try(self, request: dict[str, Any]) -> tuple[dict[str, Any], SharedMemory]:
        worker = self._take(request["path"])
        is_sound = False
        try:
            answer = worker.ask(request)
            is_sound = True
            return answer
        except _Refused as error:
            is_sound = True
            raise UnreadableVideo(str(error)) from None
        finally:
            self._give_back(worker, is_sound)

    def _take(self, path: str) -> "_Worker":
        with self._change:
            while not self._free and len(self._all) == self.workers:
                self._change.wait()
            if self._is_closed:
                raise UnreadableVideo("decoding was stopped")
            if not self._free:
                worker = _Worker(path, self.limits, self._memories)
                self._all.add(worker)
                return worker
            # the one that has this file open, else the one idle for longest
            same = (worker for worker in self._free if worker.path == path)
            worker = next(same, self._free[0])
            self._free.remove(worker)
            worker.path = path
            return worker

    def _give_back(self, worker: "_Worker", is_sound: bool) -> None:
        if not is_sound:
            worker.end()
        with self._change:
            if is_sound:
                self._free.append(worker)
            else:
                self._all.remove(worker)
            self._change.notify()


@dataclass(frozen=True)
class _Limits:
    """What one decoder process may take."""

    memory_gb: float
    time_s: float
    result_gb: float


class _Worker:
    """One decoder process and the socket to it."""

    def __init__(self, path: str, limits: _Limits, memories: MemoryPool) -> None:
        self.path, self.limits, self._memories = path, limits, memories
        self.socket, theirs = socket.socketpair()
        arguments = [theirs.fileno(), os.getpid(), int(limits.memory_gb * 1e9), limits.time_s]
        paths = [str(Path(__file__).parents[2]), *sys.path]
        with theirs:
            self.process = subprocess.Popen(
                [*PYTHON, "-c", START, json.dumps(paths), json.dumps(arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={k: v for k, v in os.environ.items() if k in INHERITED} | ENVIRONMENT,
            )

    def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], SharedMemory]:
        """Return the header of the answer, and the values in shared memory.

        Raises: _Refused; UnreadableVideo and _Ended, after which the process is of no use.
        """
        until_s = time.monotonic() + self.limits.time_s
        try:
            return self._ask(request, until_s)
        except TimeoutError:
            reason = f"takes longer than {self.limits.time_s:g} s to decode"
            raise UnreadableVideo(reason) from None
        except (OSError, EOFError):
            raise _Ended(self._how_it_ended()) from None
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UnreadableVideo("decoder crashed (answers nonsense)") from None

    def _ask(self, request: dict[str, Any], until_s: float) -> tuple[dict[str, Any], SharedMemory]:
        self.socket.settimeout(self.limits.time_s)
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        header = self._receive(until_s)
        if request["indices"] is None:
            size_bytes = 8 * _checked_info(header)
        else:
            size_bytes = _checked_shape(header, len(request["indices"]))
        if size_bytes > self.limits.result_gb * 1e9:
            raise UnreadableVideo(
                f"{header['shape']} values take more than {self.limits.result_gb:g} GB"
            )
        memory = self._memories.take(size_bytes)
        socket.send_fds(self.socket, [b"m"], [memory.fd])
        if self._receive(until_s) != {"done": True}:
            raise ValueError
        return header, memory

    def _receive(self, until_s: float) -> dict[str, Any]:
        """Return the next header, unless that is a reason why there is none."""
        line = b""
        while not line.endswith(b"\n"):
            self.socket.settimeout(max(until_s - time.monotonic(), 1e-3))
            part = self.socket.recv(4096)
            line += part
            if not part:
                raise EOFError
            if len(line) > MAX_HEADER_BYTES:
                raise ValueError
        header = json.loads(line)
        if "memory" in header:
            raise UnreadableVideo(f"needs more than {self.limits.memory_gb:g} GB to decode")
        if "error" in header:
            raise _Refused("".join(c if c.isprintable() else " " for c in header["error"]))
        return header

    def _how_it_ended(self) -> str:
        try:
            code = self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            return "hung up"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def end(self) -> None:
        """Kill the process, if it is alive."""
        self.socket.close()
        self.process.kill()
        self.process.wait()


def _checked_info(header: dict[str, Any]) -> int:
    """Return the number of frames that a video is said to have."""
    (count,) = header["shape"]
    info = header["info"]
    sides = (info["height"], info["width"])
    is_right = all(type(side) is int and 0 < side < MAX_SIDE for side in sides)
    is_right &= all(type(info[name]) is float for name in ("fps", "pixel_aspect"))
    if not (is_right and type(count) is int and 0 < count < MAX_FRAMES):
        raise ValueError
    return count


def _checked_shape(header: dict[str, Any], num_frames: int) -> int:
    """Return how many pixel values are announced."""
    frames, height, width, channels = header["shape"]
    is_right = all(type(side) is int and 0 < side < MAX_SIDE for side in (height, width))
    if not is_right or (frames, channels) != (num_frames, 3):
        raise ValueError
    return frames * height * width * channels


def _outcome(
    request: FramesRequest, frames: "Future[np.ndarray]"
) -> tuple[FramesRequest, np.ndarray | UnreadableVideo]:
    try:
        return request, frames.result()
    except UnreadableVideo as error:
        return request, error
