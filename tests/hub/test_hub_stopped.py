"""A download that is stopped, by whatever means, leaves a cache with which the next goes on."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Fault, settle
from hub_world import DOWNLOAD, WEIGHTS, World, content, world_of

from cosmos_hydra.hub.client import CHUNK_BYTES

TYPED = (
    *DOWNLOAD,
    "model.weights.format=original",
    *("model.tokenizer.path=here", "model.text_encoder.path=here"),
)
GOES_ON = "the same command goes on from here\n"
STOPS = (
    (signal.SIGINT, 130, f"cosmos-hydra: interrupted; {GOES_ON}"),
    (signal.SIGTERM, 75, f"cosmos-hydra: stopped by SIGTERM; {GOES_ON}"),
    (signal.SIGKILL, -signal.SIGKILL, ""),
)
LIMIT_S = 30.0


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with world_of(tmp_path, monkeypatch) as made:
        yield made


def stopped(world: World, number: int, partial: Path, size: int) -> tuple[int, str, float]:
    """Start the command, send a signal once the partial file has a size, return how it ended."""
    here = {"HF_HOME": str(world.home), "HF_ENDPOINT": world.hub.url, "HF_TOKEN": world.hub.token}
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-m", "cosmos_hydra", *TYPED],
        cwd=world.work,
        env={**kept, **here, "HOME": str(world.folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # ignored in what a shell started in the background, and so in its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    end_s = time.monotonic() + LIMIT_S
    while not (partial.is_file() and partial.stat().st_size == size):
        assert time.monotonic() < end_s
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    began_s = time.monotonic()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=LIMIT_S)
    return process.returncode, stderr, time.monotonic() - began_s


def test_ctrl_c_sigterm_and_kill_cost_a_chunk_at_most(world: World) -> None:
    data = content("large", 6 * CHUNK_BYTES)
    world.hub.repos[WEIGHTS].files["model.pt"] = data
    blobs = world.snapshot(WEIGHTS).parent.parent / "blobs"
    partial = blobs / f"{hashlib.sha256(data).hexdigest()}.incomplete"
    for chunks, (number, code, line) in enumerate(STOPS, start=1):
        world.hub.faults = [Fault("stall", "GET /cdn/", after=CHUNK_BYTES * 3 // 2)]
        size = chunks * CHUNK_BYTES
        returncode, stderr, took_s = stopped(world, number, partial, size)
        assert (returncode, stderr) == (code, line)
        assert took_s < 9  # an answer that does not come is not waited for
    assert "model.pt" not in world.fetched(WEIGHTS)
    assert world.download(*TYPED[2:]).code == 0
    assert world.fetched(WEIGHTS) == world.expected(WEIGHTS, "model.pt", "config.json")
    world.hub.is_over.set()
    settle(world.hub)
    sent = sum(one.sent_bytes for one in world.hub.requests if one.path.startswith("/cdn/"))
    assert sent <= len(data) + len(STOPS) * CHUNK_BYTES
    assert {path.name for path in world.folder.iterdir()} == {"hf", "work"}
    assert list(world.work.iterdir()) == []
