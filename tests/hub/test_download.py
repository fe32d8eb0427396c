"""stage=download fetches what a config needs, once, verified, into the Hub's ordinary cache."""

import json
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Command
from hub_world import (
    DOWNLOAD,
    GUARDRAIL,
    TOKENIZER,
    UPSAMPLER,
    VIDEOS,
    WEIGHTS,
    World,
    world_of,
)
from huggingface_hub import hf_hub_download, try_to_load_from_cache

USED = ("transformer/", "text_encoder/", "tokenizer/")
Disk = namedtuple("Disk", "total used free")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with world_of(tmp_path, monkeypatch) as made:
        yield made


def everything_below(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_what_a_model_needs_is_fetched_and_nothing_else(world: World, command: Command) -> None:
    outcome = command(*DOWNLOAD, cwd=world.work)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert world.fetched(WEIGHTS) == world.expected(WEIGHTS, *USED)
    assert world.fetched(TOKENIZER) == world.expected(TOKENIZER, "vae/")
    kept = [data for repo in (WEIGHTS, TOKENIZER) for data in world.fetched(repo).values()]
    assert world.hub.content_bytes == sum(map(len, kept))
    lines = outcome.stdout.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["repository", "revision", "state", "to", "fetch"],
        [WEIGHTS, "main", "accessible", "213.2", "kB", "of", "213.2", "kB"],
        [TOKENIZER, "main", "accessible", "40.6", "kB", "of", "40.6", "kB"],
    ]
    assert lines[3].startswith("disk: ")
    assert lines[3].endswith(f" GB free in {world.home}/hub")
    commit = world.hub.repos[WEIGHTS].commit[:12]
    assert lines[5] == (
        f"{WEIGHTS}: fetched and verified, commit {commit} of main; for another one set "
        f"model.weights.revision"
    )
    assert lines[7:-1] == [
        f"transformer (diffusers): {world.snapshot(WEIGHTS)}/transformer",
        f"tokenizer: {world.snapshot(TOKENIZER)}/vae",
        f"text encoder: {world.snapshot(WEIGHTS)}/text_encoder",
    ]
    # as the Hub's own tools lay it out: content once, links to it, the branch
    path = try_to_load_from_cache(WEIGHTS, "transformer/config.json", revision="main")
    assert isinstance(path, str)
    assert Path(path).is_symlink()
    assert list(world.work.iterdir()) == []
    assert {path.name for path in world.folder.iterdir()} == {"hf", "work"}


def test_a_second_run_asks_and_fetches_nothing(world: World) -> None:
    assert world.download().code == 0
    before = everything_below(world.home)
    count = len(world.hub.requests)
    commit = world.hub.repos[WEIGHTS].commit
    # what the branch leads to is another commit now
    world.hub.repos[WEIGHTS].files["transformer/config.json"] = b"{}"
    outcome = world.download()
    assert (outcome.code, len(world.hub.requests)) == (0, count)
    assert everything_below(world.home) == before
    assert (
        f"{WEIGHTS}: nothing to fetch, commit {commit[:12]} of main; for another one set "
        f"model.weights.revision\n"
    ) in outcome.stdout
    assert outcome.stdout.splitlines()[1].split()[2:] == ["complete", "0", "B", "of", "213.2", "kB"]


def test_another_revision_is_fetched_beside_the_first(world: World) -> None:
    assert world.download().code == 0
    first = world.fetched(WEIGHTS)
    world.hub.repos[WEIGHTS].files["transformer/config.json"] = b"{}"
    sent = world.hub.content_bytes
    typed = ("model.weights.revision=v1", "model.text_encoder.path=elsewhere")
    assert world.download(*typed).code == 0
    assert world.fetched(WEIGHTS) == world.expected(WEIGHTS, "transformer/")
    assert first["transformer/config.json"] != b"{}"
    # content that is there already is not fetched again
    assert world.hub.content_bytes - sent == 2


@pytest.mark.parametrize(
    ("form", "folders", "place"),
    [
        ("original", ("model.pt", "config.json"), "model.pt"),
        ("nemo", ("nemo/",), "nemo"),
        ("diffusers", ("transformer/",), "transformer"),
    ],
)
def test_each_format_of_weights_is_exactly_its_files(
    world: World, form: str, folders: tuple[str, ...], place: str
) -> None:
    paths = ("model.tokenizer.path=here", "model.text_encoder.path=here")
    outcome = world.download(f"model.weights.format={form}", *paths)
    assert outcome.code == 0
    assert world.fetched(WEIGHTS) == world.expected(WEIGHTS, *folders)
    lines = outcome.stdout.splitlines()
    where = f"{world.snapshot(WEIGHTS)}/{place}"
    assert lines[-2] == f"transformer ({form}): {where}"
    assert lines[-1].startswith(
        f"next: cosmos-hydra stage=generate model=7b checkpoint={where} data.frames=121 "
    )
    assert {request.path.split("/")[-1] for request in world.hub.requests} >= {"main"}
    assert not any(TOKENIZER in request.path for request in world.hub.requests)


def test_extras_and_sample_videos_are_fetched_on_request(world: World) -> None:
    extras = ("download.extras=[guardrail,prompt_upsampler]", "download.sample_videos=true")
    paths = [f"model.{name}.path=here" for name in ("weights", "tokenizer", "text_encoder")]
    outcome = world.download(*paths, *extras)
    assert outcome.code == 0
    for repo in (GUARDRAIL, UPSAMPLER, VIDEOS):
        assert world.fetched(repo) == world.hub.repos[repo].files
    place = world.snapshot(VIDEOS)
    assert "datasets--nvidia--Cosmos-NeMo-Assets" in str(place)
    assert outcome.stdout.splitlines()[-1] == (
        f"next: cosmos-hydra stage=preprocess model=7b data=robot data.source={place}"
    )


def test_a_toy_needs_nothing(world: World) -> None:
    outcome = world.download(model="tiny")
    assert (outcome.code, outcome.stdout) == (0, "model=tiny: nothing to download\n")
    assert world.hub.requests == []


def test_a_check_fetches_no_content(world: World) -> None:
    outcome = world.download("download.check=true")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout.endswith("download.check=true: nothing was fetched\n")
    assert world.hub.content_bytes == 0
    assert not world.home.exists()
    world.hub.repos[WEIGHTS].is_gated = True
    assert world.download("download.check=true").code == 1


def test_too_small_a_disk_is_found_before_anything_is_fetched(
    world: World, command: Command
) -> None:
    world.patch.setattr(shutil, "disk_usage", lambda path: Disk(10**6, 0, 200_000))
    outcome = command(*DOWNLOAD, cwd=world.work)
    assert outcome.code == 1
    assert outcome.stderr == (
        f"cosmos-hydra: HF_HOME={world.home} has 200.0 kB free but 253.8 kB are needed; free some "
        f"space, or export HF_HOME=FOLDER on a larger disk\n"
    )
    assert "disk: 200.0 kB free in " in outcome.stdout
    assert world.hub.content_bytes == 0


def test_verification_on_request_finds_content_that_changed(world: World) -> None:
    assert world.download().code == 0
    count = len(world.hub.requests)
    verify = ("download.verify=true",)
    assert world.download(*verify).code == 0
    assert len(world.hub.requests) == count
    for name in ("transformer/config.json", "text_encoder/model-00001-of-00001.safetensors"):
        blob = (world.snapshot(WEIGHTS) / name).resolve()
        content = blob.read_bytes()
        blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert world.download().code == 0  # sizes are as they were
    assert len(world.hub.requests) == count
    outcome = world.download(*verify)
    assert outcome.code == 0
    assert (
        f"{WEIGHTS}: transformer/config.json has changed since it was verified; it is removed\n"
    ) in outcome.stdout
    assert world.fetched(WEIGHTS) == world.expected(WEIGHTS, *USED)


def test_what_other_tools_fetched_is_verified_and_shared(world: World) -> None:
    names = ("transformer/config.json", "text_encoder/model-00001-of-00001.safetensors")
    for name in names:
        hf_hub_download(WEIGHTS, name)
    blob = (world.snapshot(WEIGHTS) / names[0]).resolve()
    blob.write_bytes(b"x" * blob.stat().st_size)
    sent = world.hub.content_bytes
    outcome = world.download()
    assert outcome.code == 0
    assert f"{names[0]} is damaged in the cache; fetching it again\n" in outcome.stdout
    assert "60.7 kB are there already and are verified first\n" in outcome.stdout
    assert world.fetched(WEIGHTS) == world.expected(WEIGHTS, *USED)
    total = sum(len(data) for repo in (WEIGHTS, TOKENIZER) for data in world.fetched(repo).values())
    there = len(world.hub.repos[WEIGHTS].files[names[1]])
    assert world.hub.content_bytes - sent == total - there


def test_a_damaged_record_is_made_again_without_fetching(world: World) -> None:
    assert world.download().code == 0
    sent = world.hub.content_bytes
    for record in world.home.glob("cosmos-hydra/records/*"):
        text = record.read_text()
        assert json.loads(text)["commit"] in str(world.snapshot(WEIGHTS)) + str(
            world.snapshot(TOKENIZER)
        )
        record.write_text(text[: len(text) // 2])
    assert world.download().code == 0
    assert world.hub.content_bytes == sent


def test_the_token_is_shown_to_the_hub_alone(world: World, command: Command) -> None:
    outcome = command(*DOWNLOAD, "hydra.verbose=true", cwd=world.work)
    assert outcome.code == 0
    token = world.hub.token
    tokens = {request.path.startswith("/cdn/"): request.token for request in world.hub.requests}
    assert tokens == {False: token, True: None}
    shown = outcome.stdout + outcome.stderr
    for secret in (token, "secret-signature"):
        assert secret not in shown
        for path in world.folder.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes()


def test_one_download_at_a_time(world: World) -> None:
    from cosmos_hydra.claim import claim

    with claim(world.home / "cosmos-hydra/.lock", "it"):
        outcome = world.download()
    assert outcome.code == 1
    assert outcome.stderr.startswith(f"HF_HOME={world.home} is in use by process")
