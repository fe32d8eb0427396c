"""The decoder process: reads requests from a socket, answers with headers, fills shared memory.

A file that breaks the decoder breaks this process and no other. It holds no secrets (its
environment is nearly empty), writes no file, and ends with its parent or when it takes too long.
Headers are lines of JSON. Pixels go into memory that the parent makes once it has the shape.
"""

import json
import mmap
import os
import resource
import signal
import socket
from collections import OrderedDict
from pathlib import Path
from typing import Any

import av
import numpy as np

from cosmos_hydra.data.decode_open import NO_VIDEO, Unreadable
from cosmos_hydra.data.decode_reader import Reader

READERS = 16  # files whose tables are kept; one is open
OPEN_FILES = 4  # a video, shared memory, and to spare
GRACE_S = 5.0  # the parent's clock comes first
LOOK_FOR_PARENT_S = 2.0
MAX_REASON = 120
IGNORED = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


def serve(socket_fd: int, parent: int, memory_bytes: int, time_s: float) -> None:
    """Answer requests until the parent is gone."""
    for number in IGNORED:  # meant for the parent, sent to its whole group
        signal.signal(number, signal.SIG_IGN)
    av.logging.set_level(av.logging.PANIC)
    connection = socket.socket(fileno=socket_fd)
    limit(memory_bytes)
    readers: OrderedDict[tuple, Reader] = OrderedDict()
    while (request := _next_request(connection, parent)) is not None:
        # by default the signal ends the process, whatever loop it is in
        signal.setitimer(signal.ITIMER_REAL, time_s + GRACE_S)
        answer: dict[str, Any] = {"done": True}
        try:
            reader = _reader(readers, request["path"])
            if request["indices"] is None:
                _send_info(connection, reader)
            else:
                _send_pictures(connection, reader, request["indices"])
        except MemoryError:
            answer = {"memory": True}
        # whatever a parser runs into is a reason and no end
        except Exception as error:  # noqa: BLE001
            answer = {"error": _reason(error)}
        if "done" not in answer:
            while readers:
                readers.popitem()[1].close()
        _send(connection, answer)
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def limit(memory_bytes: int) -> None:
    """Let this process take no more memory, write no file and open few."""
    opened = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: opened + OPEN_FILES,
    }
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))


def _next_request(connection: socket.socket, parent: int) -> dict[str, Any] | None:
    connection.settimeout(LOOK_FOR_PARENT_S)
    line = b""
    while not line.endswith(b"\n"):
        try:
            part = connection.recv(1 << 16)
        except TimeoutError:
            # a process forked from the parent can hold the other end of the socket open
            if os.getppid() != parent:
                return None
            continue
        except ConnectionError:
            return None
        if not part:
            return None
        line += part
    connection.settimeout(None)
    return json.loads(line)


def _reader(readers: OrderedDict[tuple, Reader], path: str) -> Reader:
    found = Path(path).stat()
    key = (path, found.st_ino, found.st_size, found.st_mtime_ns)
    reader = readers.pop(key, None)
    if readers:
        readers[next(reversed(readers))].close()  # FFmpeg keeps the memory of every frame it made
    if reader is None:
        if len(readers) == READERS:
            readers.popitem(last=False)
        reader = Reader(path)
    readers[key] = reader
    return reader


def _send_info(connection: socket.socket, reader: Reader) -> None:
    height, width = reader.converter.height_width
    start_s = np.ascontiguousarray(reader.start_s(), np.float64)
    info = {
        "height": height,
        "width": width,
        "fps": reader.fps,
        "pixel_aspect": reader.converter.pixel_aspect,
    }
    _send(connection, {"info": info, "shape": list(start_s.shape)})
    fd = _receive_fd(connection)
    try:
        _write(fd, 0, start_s)
    finally:
        os.close(fd)


def _send_pictures(connection: socket.socket, reader: Reader, indices: list[int]) -> None:
    height, width = reader.converter.height_width
    _send(connection, {"shape": [len(indices), height, width, 3]})
    fd = _receive_fd(connection)
    places: dict[int, list[int]] = {}
    for place, index in enumerate(indices):
        places.setdefault(index, []).append(place)
    try:
        for index, picture_HWC in reader.pictures(indices):
            for place in places[index]:
                _write(fd, place * picture_HWC.size, picture_HWC)
    finally:
        os.close(fd)


def _write(fd: int, offset: int, values: np.ndarray) -> None:
    """Copy into shared memory, mapping no more of it than is needed."""
    begin = offset - offset % mmap.ALLOCATIONGRANULARITY
    length = offset - begin + values.nbytes
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    memory = mmap.mmap(fd, length, flags, offset=begin)
    place = np.frombuffer(memory, values.dtype, values.size, offset - begin)
    np.copyto(place.reshape(values.shape), values)


def _receive_fd(connection: socket.socket) -> int:
    _, fds, _, _ = socket.recv_fds(connection, 1, 1)
    if not fds:
        raise EOFError
    return fds[0]


def _send(connection: socket.socket, header: dict[str, Any]) -> None:
    connection.sendall(json.dumps(header).encode() + b"\n")


def _reason(error: Exception) -> str:
    if isinstance(error, Unreadable):
        return str(error)
    if isinstance(error, (av.InvalidDataError, av.EOFError)):
        return NO_VIDEO
    if isinstance(error, OSError) and not isinstance(error, av.FFmpegError):
        return f"cannot be read ({error.strerror})"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"cannot be decoded ({text.splitlines()[0][:MAX_REASON]})"
