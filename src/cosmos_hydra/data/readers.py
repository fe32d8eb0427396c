"""Tell preprocessing that a run reads a folder of samples, so that it removes none of them."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cosmos_hydra.claim import is_file_of, open_lock
from cosmos_hydra.data.layout import Layout


@contextmanager
def reading(layout: Layout) -> Iterator[None]:
    """Hold a lock that many may hold; in a folder that cannot be written to, nothing."""
    path = layout.readers
    while True:
        try:
            file = open_lock(path)
        except OSError:
            yield
            return
        with file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_SH)
            if not is_file_of(path, file.fileno()):
                continue  # the last reader before removed it in between
            try:
                yield
            finally:
                with suppress(OSError):  # others read on
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
            return


def has_readers(layout: Layout) -> bool:
    """Return whether some run reads the folder now."""
    try:
        with layout.readers.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
