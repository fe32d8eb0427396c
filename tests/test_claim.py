"""One process a folder: who owns it, who is told so, and what a death leaves behind."""

import errno
import fcntl
import logging
import multiprocessing
import os
import signal
import socket
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cosmos_hydra.claim import claim
from cosmos_hydra.errors import StageError

ADVICE = "; wait for it to end, or choose another folder"
LIMIT_S = 60
FORK = multiprocessing.get_context("fork")


def refusal(lock: Path) -> str:
    """Return the message with which a second claim is refused."""
    with pytest.raises(StageError) as refused, claim(lock, "runs/one"):
        raise AssertionError("claimed twice")
    return str(refused.value)


def start(lock: Path, barrier: Any, told: Any) -> None:
    """Claim when all are ready; the owner holds it until all others were told."""
    barrier.wait()
    try:
        with claim(lock, "runs/one"):
            told.put(("owner", os.getpid()))
            barrier.wait()
    except StageError as error:
        told.put(("refused", str(error)))
        barrier.wait()


def join(processes: list[Any]) -> None:
    for process in processes:
        process.join(LIMIT_S)
    assert {process.exitcode for process in processes} == {0}


def all_at_once(lock: Path, count: int) -> None:
    """Start processes at the same moment; check that one owns the lock and the others know it."""
    barrier, told = FORK.Barrier(count, timeout=LIMIT_S), FORK.SimpleQueue()
    processes = [FORK.Process(target=start, args=(lock, barrier, told)) for _ in range(count)]
    for process in processes:
        process.start()
    join(processes)
    outcomes = [told.get() for _ in processes]
    kinds = Counter(kind for kind, _ in outcomes)
    assert kinds == {"owner": 1, "refused": count - 1}
    [owner] = [content for kind, content in outcomes if kind == "owner"]
    # one that looks before the owner has signed cannot name it
    known = f"process {owner} on {socket.gethostname()}"
    allowed = {f"runs/one is in use by {who}{ADVICE}" for who in (known, "another process")}
    assert {content for kind, content in outcomes if kind == "refused"} <= allowed
    assert not lock.exists()


def test_of_ten_simultaneous_starts_one_owns_the_folder(tmp_path: Path) -> None:
    for number in range(3):
        all_at_once(tmp_path / str(number) / "runs/one/.lock", 10)


@pytest.mark.slow
def test_of_fifty_simultaneous_starts_one_owns_the_folder(tmp_path: Path) -> None:
    for number in range(20):
        all_at_once(tmp_path / str(number) / "runs/one/.lock", 50)


def take_turns(lock: Path, times: int, told: Any) -> None:
    """Claim and let go again and again; note what went wrong and how often it was ours."""
    found = Counter()
    alone = lock.parent.parent / "alone"
    for _ in range(times):
        with suppress(StageError), claim(lock, "runs/one"):
            try:
                os.close(os.open(alone, os.O_CREAT | os.O_EXCL))
                alone.unlink()
                found["owned"] += 1
            except FileExistsError:
                found["shared"] += 1
    told.put(dict(found))


@pytest.mark.parametrize("times", [100, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_folder_that_comes_and_goes_has_one_owner_at_a_time(tmp_path: Path, times: int) -> None:
    told = FORK.SimpleQueue()
    arguments = (tmp_path / "runs/.lock", times, told)
    processes = [FORK.Process(target=take_turns, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    join(processes)
    found = sum((Counter(told.get()) for _ in processes), Counter())
    assert found["shared"] == 0
    assert found["owned"]


def test_a_second_claim_names_the_process_and_its_slurm_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / ".lock"
    who = f"process {os.getpid()} on {socket.gethostname()}"
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with claim(lock, "runs/one"):
        assert refusal(lock) == f"runs/one is in use by {who}{ADVICE}"
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with claim(lock, "runs/one"):
        assert refusal(lock) == f"runs/one is in use by {who}, Slurm job 4711{ADVICE}"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b'{"pid": 3}', b"\xff\x00\xfe"])
def test_a_lock_file_that_says_nothing_still_refuses(tmp_path: Path, content: bytes) -> None:
    lock = tmp_path / ".lock"
    with claim(lock, "runs/one"):
        lock.write_bytes(content)
        assert refusal(lock) == f"runs/one is in use by another process{ADVICE}"


@pytest.mark.parametrize("content", [b"", b"\xff\x00\xfe", b'{"host": "elsewhere", "pid": 1}' * 9])
def test_a_lock_file_that_nobody_holds_is_no_obstacle(tmp_path: Path, content: bytes) -> None:
    lock = tmp_path / ".lock"
    lock.write_bytes(content)
    with claim(lock, "runs/one"):
        assert str(os.getpid()) in refusal(lock)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_owner_leaves_a_lock_file_that_is_no_obstacle(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    barrier, told = FORK.Barrier(2, timeout=LIMIT_S), FORK.SimpleQueue()
    owner = FORK.Process(target=start, args=(lock, barrier, told))
    owner.start()
    barrier.wait()
    assert told.get() == ("owner", owner.pid)
    assert f"process {owner.pid} on" in refusal(lock)
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    assert lock.exists()
    with claim(lock, "runs/one"):
        assert f"process {os.getpid()} on" in refusal(lock)


def test_the_folder_it_made_goes_with_it_unless_something_is_in_it(tmp_path: Path) -> None:
    lock = tmp_path / "runs/one/.lock"
    with claim(lock, "runs/one"):
        assert lock.is_file()
    assert list(tmp_path.iterdir()) == []
    with claim(lock, "runs/one"):
        (lock.parent / "run.log").touch()
    assert [path.name for path in lock.parent.iterdir()] == ["run.log"]


def test_a_failure_inside_gives_the_folder_back(tmp_path: Path) -> None:
    with pytest.raises(KeyError), claim(tmp_path / ".lock", "runs/one"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    def fail(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    with claim(tmp_path / ".lock", "runs/one"):
        (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"{tmp_path} has a file system without locks: run one process"


def test_a_link_in_place_of_the_lock_is_refused_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("do not lose")
    lock = tmp_path / ".lock"
    lock.symlink_to("thesis")
    assert refusal(lock) == f"{lock} is a link; remove it"
    assert (tmp_path / "thesis").read_text() == "do not lose"
