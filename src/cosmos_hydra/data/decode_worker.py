"""One decoder process, seen from outside: started, asked, its answers checked, ended.

Nothing it sends is trusted: headers are JSON of known shape, and sizes are checked before memory is
made, which cannot be resized.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmos_hydra.data.decode_memory import MemoryPool, SharedMemory
from cosmos_hydra.errors import StageError, storage_error

MAX_HEADER_BYTES = 1 << 16
MAX_SIDE = 1 << 16  # pixels
MAX_FRAMES = 1 << 26  # of a video: half a gigabyte of time stamps
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


class Refused(Exception):
    """The reason that a decoder process gives; it is sound itself."""


class Ended(Exception):
    """A decoder process ended by itself; the message says how."""


@dataclass(frozen=True)
class Limits:
    """What one decoder process may take."""

    memory_gb: float
    time_s: float
    result_gb: float


class Worker:
    """One decoder process and the socket to it."""

    def __init__(self, path: str, limits: Limits, memories: MemoryPool) -> None:
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

        Raises: Refused; UnreadableVideo and Ended, after which the process is of no use; StageError
        when there is no memory to be had.
        """
        until_s = time.monotonic() + self.limits.time_s
        try:
            return self._ask(request, until_s)
        except TimeoutError:
            reason = f"takes longer than {self.limits.time_s:g} s to decode"
            raise UnreadableVideo(reason) from None
        except (OSError, EOFError):
            raise Ended(self._how_it_ended()) from None
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
        memory = self._memory(size_bytes)
        socket.send_fds(self.socket, [b"m"], [memory.fd])
        if self._receive(until_s) != {"done": True}:
            raise ValueError
        return header, memory

    def _memory(self, size_bytes: int) -> SharedMemory:
        try:
            return self._memories.take(size_bytes)
        except OSError as error:  # this process's fault and not the video's
            reason = f"no memory for {size_bytes / 1e6:.0f} MB of frames ({error.strerror})"
            known = storage_error(OSError(error.errno, error.strerror, self.path))
            raise known or StageError(
                f"{self.path}: {reason}; end other programs or raise their limits (ulimit -a)"
            ) from None

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
            raise Refused("".join(c if c.isprintable() else " " for c in header["error"]))
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
