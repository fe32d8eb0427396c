"""The errors users see: one line each, with an exit code.

Message shape: `<config key>=<value> <what is wrong>; <what would be right, or what to run>`.
"""

import errno
import os


class CosmosError(Exception):
    """An error the user can act on; `main` prints it without a traceback."""

    exit_code = 1
    # whether every rank of a job meets it
    is_everywhere = False


class ConfigError(CosmosError):
    """Something to fix in the config; found before any model is built. One problem a line."""

    exit_code = 2
    is_everywhere = True

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class StageError(CosmosError):
    """The data or the environment does not allow the stage to go on."""


class Preempted(CosmosError):
    """A signal asked the run to stop; its checkpoint is on disk."""

    exit_code = 75
    is_everywhere = True


# what a disk answers when it does not take a file, and what to do about it
ELSEWHERE = "or set paths.runs, paths.samples or generate.out to another folder"
GOES_ON = "the same command goes on from here"
STORAGE = {
    errno.ENOSPC: f"free some space, {GOES_ON}",
    errno.EDQUOT: f"free some of your quota, {GOES_ON}",
    errno.EFBIG: f"allow larger files (ulimit -f), {GOES_ON}",
    errno.EROFS: f"make it writable, {ELSEWHERE}",
    errno.EACCES: f"change its permissions, {ELSEWHERE}",
    errno.EPERM: f"change its permissions, {ELSEWHERE}",
    errno.ENOTDIR: f"remove the file that is in the way, {ELSEWHERE}",
    errno.EEXIST: f"remove the file that is in the way, {ELSEWHERE}",
    errno.EIO: f"look at the disk, {GOES_ON}",
    errno.ESTALE: f"look at the disk, {GOES_ON}",
}


def storage_error(error: OSError) -> StageError | None:
    """Return one line for an error of disk or permissions, None for any other."""
    if error.errno not in STORAGE:
        return None
    where = f"{error.filename}: " if error.filename else ""
    reason = (error.strerror or os.strerror(error.errno)).lower()
    return StageError(f"{where}{reason}; {STORAGE[error.errno]}")


def storage_errno(error: BaseException) -> int | None:
    """Return the number of the disk's error behind that of any library; None if there is none.

    Some raise their own kind with the system's words in it, some hide the cause in a chain.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in STORAGE:
            return seen.errno
        for number in STORAGE:
            if os.strerror(number) in str(seen):
                return number
        seen = seen.__cause__ or seen.__context__
    return None
