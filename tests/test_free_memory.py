"""Free memory of the host, from proc/ and sys/ as the kernel writes them."""

from pathlib import Path

import pytest

from cosmos_hydra.free_memory import host_free_bytes

GIB = 1024**3
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a machine with 20 GiB available, whose process is in no control group."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("")
    rows = f"MemTotal: {32 * 1024**2} kB\nMemFree: 1 kB\nMemAvailable: {20 * 1024**2} kB\n"
    (tmp_path / "proc/meminfo").write_text(rows)
    return tmp_path


def write_group(
    folder: Path, names: tuple[str, str, str], limit: str, used: int, cached: int = 0
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 0\n{names[2]} {cached}\n")


def test_without_groups_it_is_what_the_kernel_calls_available(root: Path) -> None:
    assert host_free_bytes(root) == 20 * GIB


@pytest.mark.parametrize(
    ("names", "mount", "line"),
    [
        (V2, "", "0::/job/step"),
        (V1, "memory", "9:cpu,memory:/job/step"),
    ],
)
class TestGroups:
    def test_the_tightest_group_above_the_process_counts(
        self, root: Path, names: tuple[str, str, str], mount: str, line: str
    ) -> None:
        (root / "proc/self/cgroup").write_text(f"3:cpuset:/\n{line}\n")
        top = root / "sys/fs/cgroup" / mount
        write_group(top / "job/step", names, str(16 * GIB), 2 * GIB)
        write_group(top / "job", names, str(8 * GIB), 3 * GIB)
        write_group(top / "neighbour", names, str(GIB), 0)
        assert host_free_bytes(root) == 5 * GIB

    def test_in_a_container_the_group_is_the_top_one(
        self, root: Path, names: tuple[str, str, str], mount: str, line: str
    ) -> None:
        (root / "proc/self/cgroup").write_text(f"{line}\n")
        write_group(root / "sys/fs/cgroup" / mount, names, str(4 * GIB), GIB)
        assert host_free_bytes(root) == 3 * GIB

    def test_files_that_were_read_do_not_count_as_used(
        self, root: Path, names: tuple[str, str, str], mount: str, line: str
    ) -> None:
        (root / "proc/self/cgroup").write_text(f"{line}\n")
        write_group(root / "sys/fs/cgroup" / mount, names, str(4 * GIB), 4 * GIB, cached=3 * GIB)
        assert host_free_bytes(root) == 3 * GIB

    @pytest.mark.parametrize("none", ["max", str(2**63 - 4096)])
    def test_a_group_without_limit_takes_nothing_away(
        self, root: Path, names: tuple[str, str, str], mount: str, line: str, none: str
    ) -> None:
        (root / "proc/self/cgroup").write_text(f"{line}\n")
        write_group(root / "sys/fs/cgroup" / mount, names, none, GIB)
        assert host_free_bytes(root) == 20 * GIB


def test_a_group_over_its_limit_leaves_nothing(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("0::/\n")
    write_group(root / "sys/fs/cgroup", V2, str(GIB), 2 * GIB)
    assert host_free_bytes(root) == 0


def test_this_machine_has_some() -> None:
    assert 10**8 < host_free_bytes() < 10**14
