"""Whatever the Hub and the network do, no bad file is accepted and the same command goes on."""

import hashlib
import logging
import random
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Command
from hub_server import Fault, settle
from hub_world import CHUNK, CUT, TOKENIZER, WEIGHTS, World, content, released, world_of

from cosmos_hydra.hub import client

PATHS = ("model.tokenizer.path=here", "model.text_encoder.path=here")
ORIGINAL = ("model.weights.format=original", *PATHS)
GOES_ON = "the same command goes on from here"
logger = logging.getLogger(__name__)
LARGE = "GET /cdn/"  # content of the files that are not small


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with world_of(tmp_path, monkeypatch) as made:
        yield made


def bad_files(world: World) -> list[Path]:
    """Return blobs that are not what their name says, and files of snapshots that are not right."""
    bad = []
    for blob in world.blobs():
        data = blob.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        names = (git, hashlib.sha256(data).hexdigest())
        if not blob.name.endswith(".incomplete") and blob.name not in names:
            bad.append(blob)
    for repo in (WEIGHTS, TOKENIZER):
        right = world.hub.repos[repo].files
        folder = world.snapshot(repo)
        bad += [folder / path for path, data in world.fetched(repo).items() if right[path] != data]
    return bad


def test_a_cut_costs_one_chunk_at_most(world: World) -> None:
    size = len(world.hub.repos[WEIGHTS].files["model.pt"])
    cuts = [CHUNK // 2, 3 * CHUNK + 5, CHUNK - 1, CHUNK]
    world.hub.faults = [Fault("cut", LARGE, after=after) for after in cuts]
    outcome = world.download(*ORIGINAL)
    assert outcome.code == 0
    assert f"the Hub does not answer ({CUT}); trying again in 0 s" in outcome.stdout
    assert world.fetched(WEIGHTS) == world.expected(WEIGHTS, "model.pt", "config.json")
    settle(world.hub)
    sent = sum(one.sent_bytes for one in world.hub.requests if one.path.startswith("/cdn/"))
    assert [one.status for one in world.hub.requests if one.path.startswith("/cdn/")] == [
        *(200, 200, 206, 206, 206)
    ]
    assert size < sent <= size + len(cuts) * CHUNK


def test_attempts_are_limited_and_the_next_command_goes_on(world: World) -> None:
    size = len(world.hub.repos[WEIGHTS].files["model.pt"])
    attempts = len(client.PAUSES_S) + 1
    world.hub.faults = [Fault("cut", LARGE, after=3 * CHUNK), Fault("503", LARGE, times=attempts)]
    outcome = world.download(*ORIGINAL)
    assert outcome.code == 1
    assert outcome.stderr == f"{WEIGHTS}: model.pt: the Hub answers HTTP 503; {GOES_ON}"
    [partial] = [blob for blob in world.blobs() if blob.name.endswith(".incomplete")]
    assert partial.stat().st_size == 3 * CHUNK
    assert "model.pt" not in world.fetched(WEIGHTS)
    outcome = world.download(*ORIGINAL)
    assert outcome.code == 0
    assert f"  accessible  {(size - 3 * CHUNK) / 1000:.1f} kB of 130.0 kB" in outcome.stdout
    settle(world.hub)
    sent = sum(one.sent_bytes for one in world.hub.requests if one.path.startswith("/cdn/"))
    assert sent == size


def test_content_of_the_right_size_is_not_enough(world: World) -> None:
    world.hub.faults = [Fault("wrong", LARGE), Fault("wrong", "GET .*resolve.*/config.json")]
    assert world.download(*ORIGINAL).code == 0
    assert world.fetched(WEIGHTS) == world.expected(WEIGHTS, "model.pt", "config.json")


@pytest.mark.parametrize(
    ("name", "match"), [("model.pt", "/cdn/"), ("config.json", "resolve.*config")]
)
def test_content_that_stays_wrong_is_refused(world: World, name: str, match: str) -> None:
    world.hub.faults = [Fault("wrong", f"GET .*{match}", times=2)]
    outcome = world.download(*ORIGINAL)
    assert outcome.code == 1
    assert outcome.stderr == (
        f"{WEIGHTS}: {name} comes with other content than the Hub lists for it, 2 times; look at "
        f"HF_ENDPOINT and at the proxy, then run the same command"
    )
    assert name not in world.fetched(WEIGHTS)
    blobs = [path.read_bytes() for path in world.blobs() if path.suffix != ".incomplete"]
    assert set(blobs) <= set(world.hub.repos[WEIGHTS].files.values())
    assert world.download(*ORIGINAL).code == 0


def test_what_was_cut_and_goes_on_wrong_is_fetched_anew(world: World) -> None:
    cut = Fault("cut", LARGE, after=2 * CHUNK)
    world.hub.faults = [cut, Fault("wrong", LARGE)]
    assert world.download(*ORIGINAL).code == 0
    assert world.fetched(WEIGHTS) == world.expected(WEIGHTS, "model.pt", "config.json")


def test_a_server_without_ranges_begins_anew(world: World) -> None:
    world.hub.faults = [Fault("cut", LARGE, after=2 * CHUNK), Fault("no_range", LARGE)]
    assert world.download(*ORIGINAL).code == 0
    assert world.fetched(WEIGHTS) == world.expected(WEIGHTS, "model.pt", "config.json")


def test_content_that_ends_early_without_a_word_is_asked_for_again(world: World) -> None:
    world.hub.faults = [Fault("short", LARGE, times=2)]
    assert world.download(*ORIGINAL).code == 0
    assert world.fetched(WEIGHTS) == world.expected(WEIGHTS, "model.pt", "config.json")


def test_the_pause_that_the_hub_asks_for_is_kept(world: World) -> None:
    world.hub.faults = [Fault("429", LARGE, retry_after="1")]
    outcome = world.download(*ORIGINAL)
    assert outcome.code == 0
    assert "the Hub answers HTTP 429 and asks to wait 1 s; trying again in 1 s\n" in outcome.stdout
    world.hub.repos[WEIGHTS].files["model.pt"] = content("another", 50_000)
    world.hub.faults = [Fault("429", LARGE, retry_after="900")]
    outcome = world.download(*ORIGINAL, "model.weights.revision=v1")
    assert outcome.stderr == (
        f"{WEIGHTS}: model.pt: the Hub answers HTTP 429 and asks to wait 900 s; {GOES_ON}"
    )


def test_access_that_ends_in_between_is_explained(world: World) -> None:
    world.hub.faults = [Fault("gated", "GET .*resolve.*model.pt")]
    outcome = world.download(*ORIGINAL)
    assert outcome.stderr == (
        f"model.weights.repo={WEIGHTS} wants its licence accepted; open "
        f"https://huggingface.co/{WEIGHTS} and accept it, with the account of your token"
    )


def test_a_disk_that_takes_no_more_is_named(world: World, command: Command) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64_000, limits[1]))
    try:
        outcome = command("stage=download", "model=7b", *ORIGINAL, cwd=world.work)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert outcome.code == 1
    assert outcome.stderr.startswith(f"cosmos-hydra: {world.home}/hub/models--nvidia--Cosmos-1.0")
    assert outcome.stderr.endswith(
        f".incomplete: file too large; allow larger files (ulimit -f), {GOES_ON}\n"
    )
    assert world.download(*ORIGINAL).code == 0


# what may be said when one of these happened, and nothing else did
ADVICE = {
    "401": r"the Hub refuses your token \(HTTP 401\); type: unset HF_TOKEN && hf auth login$",
    "403": r"your token has no right to read it \(HTTP 403\)",
    "gated": r"wants its licence accepted; open https://huggingface.co/nvidia/\S+ and accept it",
    "no_repo": r"does not exist or your token may not see it; check the name$",
    "no_revision": r"is not in nvidia/\S+; choose a branch, tag or commit of https://",
    "no_entry": r"the Hub answers HTTP 404; look at network and proxy",
    "429": r"the Hub answers HTTP 429( and asks to wait \d+ s)?;",
    "500": r"the Hub answers HTTP 500;",
    "503": r"the Hub answers HTTP 503;",
    "cut": rf"the Hub does not answer \({CUT}\);",
    "short": r"the Hub does not answer \(ConnectionError\);",
    "garbled": r"the Hub's answer cannot be understood \(",
    "hang": r"the Hub does not answer \(ReadTimeout\);",
    "wrong": r"comes with other content than the Hub lists for it, 2 times; look at HF_ENDPOINT",
    "no_range": r"(?!)",
}
LISTING = ("401", "403", "no_repo", "no_revision", "429", "500", "503", "garbled", "hang")
ANSWER = ("401", "403", "gated", "no_repo", "no_entry", "429", "500", "503", "hang")
CONTENT = ("429", "500", "503", "hang", "cut", "wrong", "no_range", "short")


def some_faults(draw: random.Random) -> list[Fault]:
    """Return what goes wrong in a session: mostly what passes, now and then what does not."""
    faults = []
    for _ in range(draw.randint(3, 12)):
        place, kinds = draw.choice(
            [("GET /api/", LISTING), ("HEAD .*resolve", ANSWER), ("GET .*resolve", ANSWER)]
            + [(LARGE, CONTENT)] * 5
            + [("GET .*resolve.*json", CONTENT)] * 2
        )
        kind = draw.choice(kinds)
        if not (place == LARGE or kind in CONTENT or draw.random() < 0.3):
            kind = "503"
        times = draw.choice([1, 1, 1, 2, 6]) if kind != "hang" else 1
        after = draw.randrange(1, 60_000)
        waits = draw.choice([None, "0"])
        faults.append(Fault(kind, place, times, after, waits))
    draw.shuffle(faults)
    return faults


def faulty_session(folder: Path, seed: int) -> tuple[int, int]:
    """Download among faults until it works; return the numbers of failed commands and of faults."""
    draw = random.Random(seed)
    faults = some_faults(draw)
    kinds = {fault.kind for fault in faults}
    failures = 0
    with pytest.MonkeyPatch.context() as patch, world_of(folder, patch, released()) as world:
        patch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.15)
        patch.setattr(client, "PAUSES_S", (0.0, 0.001, 0.002))
        world.hub.faults = faults
        used = sum(fault.times for fault in faults)
        while True:
            outcome = world.download()
            assert bad_files(world) == [], seed
            if outcome.code == 0:
                break
            failures += 1
            assert outcome.code == 1, seed
            for line in outcome.stderr.splitlines():
                assert any(re.search(ADVICE[kind], line) for kind in kinds), (seed, line)
            if failures > 25:
                world.hub.faults = []
        used -= sum(fault.times for fault in faults)
        wanted = world.expected(WEIGHTS, "transformer/", "text_encoder/", "tokenizer/")
        assert world.fetched(WEIGHTS) == wanted, seed
        assert world.fetched(TOKENIZER) == world.expected(TOKENIZER, "vae/"), seed
        assert not any(blob.name.endswith(".incomplete") for blob in world.blobs()), seed
        count = len(world.hub.requests)
        assert world.download().code == 0
        assert len(world.hub.requests) == count, seed
    return failures, used


@pytest.mark.parametrize(
    "seeds",
    [range(9, 13), pytest.param(range(100, 200), marks=pytest.mark.slow)],
    ids=["few", "all"],
)
def test_faulty_sessions_end_with_the_right_files(tmp_path: Path, seeds: range) -> None:
    counts = []
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        counts.append(faulty_session(folder, seed))
    failures, used = map(sum, zip(*counts, strict=True))
    logger.info(f"{len(seeds)} sessions, {used} faults met, {failures} commands failed")
    assert failures > 0
