"""How much memory of the host a process can still get, in a container or batch job too."""

from collections.abc import Iterator
from pathlib import Path


def host_free_bytes(root: Path = Path("/")) -> int:
    """Return what the kernel calls available, or less where a control group sets a limit.

    `root` holds proc/ and sys/.
    """
    rows = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
    available = 1024 * int(rows["MemAvailable"].split()[0])
    return max(0, min([available, *_left_in_groups(root)]))


def _left_in_groups(root: Path) -> Iterator[int]:
    """Yield what the group of this process, and each one above it, leaves below its limit."""
    mounts = root / "sys/fs/cgroup"
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        number, controllers, name = line.split(":", 2)
        if number == "0":  # version 2
            top, names = mounts, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = mounts / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = top / name.lstrip("/")
        # a container sees its own group as the top one, under a name that is not there
        for folder in [group, *group.parents[: len(group.parts) - len(top.parts)]]:
            left = _left(folder, *names)
            if left is not None:
                yield left


def _left(folder: Path, limit: str, usage: str, cached: str) -> int | None:
    if not (folder / limit).is_file():
        return None
    most = (folder / limit).read_text().strip()
    if not most.isdigit():  # `max` stands for none
        return None
    statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    # files read once count as used, but go when memory is asked for
    used = int((folder / usage).read_text()) - int(statistics[cached])
    return int(most) - used
