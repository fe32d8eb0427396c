"""Decoder processes: order, limits, and what is left of the run when one crashes or lies."""

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from raw_videos import number_of, numbered_frames, write_video

from cosmos_hydra.data import decode_worker
from cosmos_hydra.data.decode_pool import DecodePool, FramesRequest, UnreadableVideo
from cosmos_hydra.data.video import decode
from cosmos_hydra.errors import StageError


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "video.mp4"
    write_video(path, numbered_frames(90), options={"g": "30"})
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "other.mp4"
    write_video(path, numbered_frames(40))
    return path


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    with DecodePool(1) as pool:
        yield pool


def children() -> list[int]:
    """Return this process's decoder processes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            is_child = int(field(folder / "status", "PPid")) == os.getpid()
            if is_child and b"decode_child" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def field(path: Path, name: str) -> str:
    (line,) = (line for line in path.read_text().splitlines() if line.startswith(name))
    return line.removeprefix(name).strip(": \t")


def is_alive(process: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return field(Path(f"/proc/{process}/status"), "State")[0] != "Z"
    return False


def numbers(frames: np.ndarray) -> list[int]:
    return [number_of(picture) for picture in frames]


def test_results_come_in_the_order_asked_whoever_is_ready_first(video: Path, other: Path) -> None:
    generator = np.random.default_rng(0)
    requests = [
        FramesRequest(path, tuple(generator.integers(0, 40, size).tolist()))
        for path, size in zip([video, other] * 15, generator.integers(1, 30, 30), strict=True)
    ]
    requests.insert(7, FramesRequest(video, (99,)))
    requests.insert(9, FramesRequest(video.with_name("missing.mp4"), (0,)))
    with DecodePool(3) as pool:
        results = list(pool.read_ahead(requests))
    assert [request for request, _ in results] == requests
    for place, (request, frames) in enumerate(results):
        if place in (7, 9):
            assert isinstance(frames, UnreadableVideo)
        else:
            assert numbers(frames) == list(request.frame_indices)
    assert str(results[7][1]) == "has 90 frames, but frame 99 is asked for"
    assert str(results[9][1]) == "cannot be read (No such file or directory)"


def test_no_more_than_the_depth_is_asked_for_ahead(pool: DecodePool, video: Path) -> None:
    asked = 0

    def requests() -> Iterator[FramesRequest]:
        nonlocal asked
        for asked in range(1, 21):
            yield FramesRequest(video, (asked,))

    for taken, (_, frames) in enumerate(pool.read_ahead(requests(), depth=3), start=1):
        assert not isinstance(frames, UnreadableVideo)
        assert asked <= taken + 3
        if taken == 12:
            break
    assert asked == 15


def test_memory_is_used_again_but_never_while_somebody_looks(pool: DecodePool, video: Path) -> None:
    places = set()
    for _ in range(12):
        frames = pool.decode(video, [1, 2, 3])
        places.add(frames.ctypes.data)
        del frames
    assert len(places) <= 2
    held = [pool.decode(video, [number, number + 1]) for number in range(6)]
    view = held[0][1:, ::2, ::2]
    tensor = torch.from_numpy(held[1])
    del held[:2]
    gc.collect()
    for number in range(20, 30):
        pool.decode(video, [number, number])
    assert number_of(view[0]) == 1
    assert [number_of(picture) for picture in tensor] == [1, 2]
    assert [numbers(frames) for frames in held] == [[n, n + 1] for n in range(2, 6)]


def test_a_killed_decoder_is_replaced_and_its_work_done_again(video: Path) -> None:
    before = set(children())
    indices = list(range(90)) * 40
    with DecodePool(1) as pool:
        pool.probe(video)
        (child,) = set(children()) - before
        results: list[np.ndarray] = []
        thread = threading.Thread(target=lambda: results.append(pool.decode(video, indices)))
        thread.start()
        time.sleep(0.02)
        assert thread.is_alive()
        os.kill(child, signal.SIGKILL)
        thread.join(60)
        assert numbers(results[0][::97]) == indices[::97]
        (replacement,) = set(children()) - before
        assert replacement != child
    assert set(children()) == before


def test_a_video_that_crashes_the_decoder_every_time_is_reported(
    monkeypatch: pytest.MonkeyPatch, video: Path, other: Path
) -> None:
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    stem = "from cosmos_hydra.data import decode_child, decode_reader; "
    patch = (
        f"{stem}open_ = decode_child.Reader; "
        f"decode_child.Reader = lambda p: exec({crash!r}) if 'other' in p else open_(p); "
    )
    head, tail = decode_worker.START.split("from cosmos_hydra")
    monkeypatch.setattr(decode_worker, "START", f"{head}{patch}from cosmos_hydra{tail}")
    with DecodePool(2) as pool:
        requests = [FramesRequest(path, (3,)) for path in (video, other, video, other, video)]
        results = [frames for _, frames in pool.read_ahead(requests)]
    assert [str(results[place]) for place in (1, 3)] == ["decoder crashed (SIGSEGV)"] * 2
    assert [numbers(results[place]) for place in (0, 2, 4)] == [[3]] * 3


def test_a_decoder_that_hangs_is_given_up(video: Path, other: Path) -> None:
    before = set(children())
    with DecodePool(1) as pool:
        pool.probe(video)
        (worker,) = pool._free
        worker.limits = replace(worker.limits, time_s=1.0)
        (child,) = set(children()) - before
        os.kill(child, signal.SIGSTOP)
        begin_s = time.monotonic()
        with pytest.raises(UnreadableVideo) as caught:
            pool.decode(video, [0])
        assert str(caught.value) == "takes longer than 1 s to decode"
        assert time.monotonic() - begin_s < 20
        assert not is_alive(child)
        assert numbers(pool.decode(other, [17])) == [17]


def test_a_decoder_that_takes_too_much_memory_is_reported(tmp_path: Path, other: Path) -> None:
    large = tmp_path / "large.mp4"
    write_video(large, np.zeros((1, 6000, 6000, 3), np.uint8), options={"preset": "ultrafast"})
    with DecodePool(1, memory_gb=0.4) as pool:
        with pytest.raises(UnreadableVideo) as caught:
            pool.decode(large, [0])
        assert str(caught.value) == "needs more than 0.4 GB to decode"
        assert numbers(pool.decode(other, [5])) == [5]
    with DecodePool(1, result_gb=0.1) as pool:
        with pytest.raises(UnreadableVideo) as caught:
            pool.decode(large, [0])
        assert str(caught.value) == "[1, 6000, 6000, 3] values take more than 0.1 GB"
        assert numbers(pool.decode(other, [5])) == [5]


# what a decoder process that was taken over might answer to `probe`, and to `decode` of 2 frames
INFO = {"height": 64, "width": 160, "fps": 25.0, "pixel_aspect": 1.0}
LIES = [
    b"\n",
    b"[]\n",
    b"{}\n",
    b"\xff\xfe\n",
    b"[" * 60_000 + b"\n",
    b"{" + b" " * 70_000,
    json.dumps({"error": 5}).encode() + b"\n",
    *(
        json.dumps({"info": INFO, "shape": shape}).encode() + b"\n"
        for shape in ([0], [-1], [1 << 40], [True], ["9"], [], [1, 1], None, [2.0])
    ),
    *(
        json.dumps({"shape": shape}).encode() + b"\n"
        for shape in ([3, 64, 160, 3], [2, 0, 160, 3], [2, 64, 1 << 30, 3], [2, 64, 160, 4], [2])
    ),
    *(
        json.dumps({"info": INFO | wrong, "shape": [5]}).encode() + b"\n"
        for wrong in ({"height": -64}, {"width": "160"}, {"fps": None}, {"pixel_aspect": "1"})
    ),
    json.dumps({"info": INFO, "shape": [5]}).encode() + b"\n{}\n",
    json.dumps({"shape": [2, 64, 160, 3]}).encode() + b"\n" + b'{"done": 1}\n',
]


@pytest.mark.parametrize("lie", LIES, ids=range(len(LIES)))
def test_a_decoder_that_answers_nonsense_is_reported(
    lie: bytes, monkeypatch: pytest.MonkeyPatch, video: Path
) -> None:
    liar = (
        "import json, socket, sys; s = socket.socket(fileno=json.loads(sys.argv[2])[0])\n"
        f"while s.recv(9999): s.sendall({lie!r})"
    )
    monkeypatch.setattr(decode_worker, "START", liar)
    with DecodePool(1, time_s=30.0) as pool:
        for ask in (pool.probe, lambda path: pool.decode(path, [0, 1])):
            with pytest.raises(UnreadableVideo) as caught:
                ask(video)
            assert str(caught.value) == "decoder crashed (answers nonsense)"


@pytest.mark.parametrize(
    ("values", "info", "done", "reason"),
    [
        ([0.0, 2.0, 1.0], {}, "true", "cannot be decoded (time stamps are wrong)"),
        ([0.0, float("nan"), 1.0], {}, "true", "cannot be decoded (time stamps are wrong)"),
        ([0.0, 1.0], {"fps": 0.0}, "true", "cannot be decoded (frame rate unknown)"),
        ([0.0, 1.0], {"fps": float("nan")}, "true", "cannot be decoded (frame rate unknown)"),
        ([0.0, 1.0], {}, "false", "decoder crashed (answers nonsense)"),
    ],
)
def test_times_and_rates_that_cannot_be_are_refused(
    values: list[float],
    info: dict,
    done: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    video: Path,
) -> None:
    header = json.dumps({"info": INFO | info, "shape": [len(values)]})
    liar = (
        "import array, json, mmap, socket, sys\n"
        "s = socket.socket(fileno=json.loads(sys.argv[2])[0])\n"
        f"while s.recv(9999):\n s.sendall({header.encode()!r} + b'\\n')\n"
        " fd = socket.recv_fds(s, 1, 1)[1][0]\n"
        f" nan = float('nan'); mmap.mmap(fd, 4096)[:{8 * len(values)}] = "
        f"array.array('d', {values}).tobytes()\n"
        f" s.sendall(b'{{\"done\": {done}}}\\n')\n"
    )
    monkeypatch.setattr(decode_worker, "START", liar)
    with DecodePool(1) as pool, pytest.raises(UnreadableVideo) as caught:
        pool.probe(video)
    assert str(caught.value) == reason


def test_a_decoder_holds_few_things_and_ends_with_its_parent(video: Path, tmp_path: Path) -> None:
    """Memory, files and environment are limited, torch is not loaded, it starts at once."""
    program = (
        "import os, sys, time\nfrom pathlib import Path\n"
        "from cosmos_hydra.data.decode_pool import DecodePool\n"
        "pool = DecodePool(1)\nbegin = time.monotonic()\npool.probe(Path(sys.argv[1]))\n"
        "start_s = time.monotonic() - begin\nfork = os.fork()\nif fork:\n"
        " print(pool._free[0].process.pid, fork, start_s, flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = os.environ | {"HF_TOKEN": "canary-in-the-environment"}
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(video)], stdout=subprocess.PIPE, env=environment
    )
    assert parent.stdout is not None
    line = parent.stdout.readline().split()
    child, fork, start_s = int(line[0]), int(line[1]), float(line[2])
    try:
        assert start_s < 20  # 0.2 s on an idle machine
        limits = Path(f"/proc/{child}/limits")
        assert field(limits, "Max address space").split()[:2] == ["4000000000"] * 2
        assert field(limits, "Max file size").split()[:2] == ["0", "0"]
        assert field(limits, "Max core file size").split()[:2] == ["0", "0"]
        assert int(field(limits, "Max open files").split()[1]) < 20
        assert b"HF_TOKEN" not in Path(f"/proc/{child}/environ").read_bytes()
        assert "torch" not in Path(f"/proc/{child}/maps").read_text()
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(child, number)
        time.sleep(0.1)
        assert is_alive(child)
        # the fork holds the socket open
        parent.kill()
        parent.wait()
        until_s = time.monotonic() + 30
        while is_alive(child) and time.monotonic() < until_s:
            time.sleep(0.1)
        assert not is_alive(child)
        assert is_alive(fork)
    finally:
        parent.kill()
        os.kill(fork, signal.SIGKILL)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (resource.RLIMIT_FSIZE, r"file too large; allow larger files \(ulimit -f\), "),
        (
            resource.RLIMIT_NOFILE,
            r"no memory for 1 MB of frames \(Too many open files\); end other ",
        ),
    ],
)
def test_no_memory_to_decode_into_is_no_fault_of_the_video(
    kind: int, words: str, pool: DecodePool, video: Path
) -> None:
    number_of(pool.decode(video, [0])[0])  # the process is there
    gc.collect()
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (3, before[1]))
    try:
        with pytest.raises(StageError, match=f"{video}: {words}"):
            pool.decode(video, range(20))
    finally:
        resource.setrlimit(kind, before)
    assert number_of(pool.decode(video, [5])[0]) == 5


def test_a_closed_pool_has_no_processes_and_refuses(video: Path) -> None:
    before = set(children())
    with DecodePool(2) as pool:
        waiting = pool.read_ahead([FramesRequest(video, tuple(range(90)))] * 8, depth=4)
        next(waiting)
        assert set(children()) > before
    assert set(children()) == before
    with pytest.raises(UnreadableVideo, match=r"^decoding was stopped$"):
        pool.decode(video, [0])


def test_a_forked_process_decodes_with_processes_of_its_own(video: Path) -> None:
    assert numbers(decode(video, [4]).numpy()) == [4]
    before = set(children())
    fork = os.fork()
    if fork == 0:
        is_right = numbers(decode(video, [8]).numpy()) == [8]
        own = set(children())
        os._exit(0 if is_right and own and not own & before else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 0
    assert numbers(decode(video, [5]).numpy()) == [5]
    assert set(children()) == before
