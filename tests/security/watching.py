"""Whether a folder is touched: by Python, seen by an audit hook, or by native code, by inotify."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# what changes or reads a file, as the interpreter names it
EVENTS = {"open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
EVENTS |= {"os.link", "os.symlink", "os.truncate", "os.chmod", "os.utime"}
IN_ACCESS, IN_MODIFY, IN_OPEN, IN_CREATE, IN_DELETE = 0x1, 0x2, 0x20, 0x100, 0x200
_seen: list[tuple[str, bool]] | None = None
_is_installed = False


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if _seen is None or event not in EVENTS:
        return
    path = arguments[0]
    if isinstance(path, (str, bytes, os.PathLike)):
        flags = arguments[2] if event == "open" else os.O_RDWR
        assert isinstance(flags, int)
        folder, name = os.path.split(os.fsdecode(path))
        # what is asked for is seen before it happens, or is refused by the kernel
        followed = name if flags & os.O_NOFOLLOW else os.path.realpath(os.fsdecode(path))
        is_write = bool(flags & (os.O_WRONLY | os.O_RDWR))
        _seen.append((str(Path(os.path.realpath(folder)) / followed), is_write))


@contextmanager
def untouched(outside: Path, root: Path) -> Iterator[None]:
    """Check that the block opens nothing in `outside` and writes nothing but below `root`."""
    global _seen, _is_installed  # an audit hook stays for the life of the process
    if not _is_installed:
        sys.addaudithook(_note)
        _is_installed = True
    libc = ctypes.CDLL(None)
    queue = libc.inotify_init1(os.O_NONBLOCK)
    mask = IN_ACCESS | IN_MODIFY | IN_OPEN | IN_CREATE | IN_DELETE
    assert libc.inotify_add_watch(queue, os.fsencode(outside), mask) >= 0
    _seen = []
    try:
        yield
        seen, _seen = _seen, None
        try:
            native = os.read(queue, 4096)
        except BlockingIOError:
            native = b""
        forbidden = os.path.realpath(outside)
        assert [path for path, _ in seen if path.startswith(forbidden)] == []
        assert native == b""
        allowed = (os.path.realpath(root), "/dev", "/proc")
        assert [path for path, is_write in seen if is_write and not path.startswith(allowed)] == []
    finally:
        _seen = None
        os.close(queue)
