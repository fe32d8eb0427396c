"""Before anything is fetched: what stands in the way of each repository, and what to type."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Command
from hub_server import Fault
from hub_world import DOWNLOAD, REFUSED, T5, TOKENIZER, VIDEOS, WEIGHTS, World, world_of
from huggingface_hub import constants

from cosmos_hydra.hub import client

NAMED = f"model.weights.repo={WEIGHTS}"
# a row of the table whose last column says that nothing can be fetched
CLOSED = re.compile(r"^\S+ +\S+  +(\S.*?) +-$", re.MULTILINE)
PAGE = f"https://huggingface.co/{WEIGHTS}"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with world_of(tmp_path, monkeypatch) as made:
        yield made


def problem(world: World, *typed: str) -> tuple[str, str]:
    """Return the state in the table and the line, having made sure that nothing was fetched."""
    outcome = world.download(*typed)
    assert outcome.code == 1
    assert world.hub.content_bytes == 0
    assert not world.home.exists() or world.blobs() == []
    [state] = CLOSED.findall(outcome.stdout)
    return state, outcome.stderr


def test_a_licence_is_accepted_on_its_page(world: World) -> None:
    world.hub.repos[WEIGHTS].is_gated = True
    state, line = problem(world)
    wants = f"{NAMED} wants its licence accepted; open {PAGE} and accept it"
    assert (state, line) == ("licence to accept", f"{wants}, with the account of your token")
    world.patch.delenv("HF_TOKEN")
    assert problem(world) == (state, f"{wants}, then type: hf auth login")
    videos = [f"model.{name}.path=here" for name in ("weights", "tokenizer", "text_encoder")]
    world.hub.repos[VIDEOS].is_gated = True
    _, line = problem(world, *videos, "download.sample_videos=true")
    assert line.startswith("download.sample_videos=true wants its licence accepted; open https://")
    assert f"huggingface.co/datasets/{VIDEOS} and accept it" in line


def test_a_refused_token_is_replaced_where_it_came_from(world: World) -> None:
    world.hub.token = "hf_AnotherTokenThanTheOneOfThisMachine"
    refused = "the Hub refuses your token (HTTP 401)"
    world.patch.setenv("HF_TOKEN", "hf_ATokenThatTheHubHasNeverHeardOf012345")
    outcome = world.download()
    assert outcome.stderr.splitlines() == [
        f"{NAMED}: {refused}; type: unset HF_TOKEN && hf auth login",
        f"model.tokenizer.repo={TOKENIZER}: {refused}; type: unset HF_TOKEN && hf auth login",
    ]
    world.patch.delenv("HF_TOKEN")
    world.home.mkdir()
    (world.home / "token").write_text("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01")
    outcome = world.download("model.tokenizer.path=here")
    assert outcome.stderr == f"{NAMED}: {refused}; type: hf auth logout && hf auth login"
    assert CLOSED.findall(outcome.stdout) == ["token refused"]


def test_a_token_is_asked_for_where_one_is_needed(world: World) -> None:
    world.patch.delenv("HF_TOKEN")
    world.hub.repos[WEIGHTS].needs_token = True
    assert problem(world) == ("no token", f"{NAMED} wants a token; type: hf auth login")


def test_a_token_without_the_right_is_said_to_have_none(world: World) -> None:
    world.hub.faults = [Fault("403", f"api.*{WEIGHTS}")]
    assert problem(world) == (
        "no access",
        (
            f"{NAMED}: your token has no right to read it (HTTP 403); type: unset HF_TOKEN && "
            f"hf auth login"
        ),
    )


def test_a_name_that_does_not_exist_is_told_from_one_that_cannot_be(world: World) -> None:
    named = "model.weights.repo=nvidia/Cosmos-7B"
    assert problem(world, named) == (
        "not found",
        f"{named} does not exist or your token may not see it; check the name",
    )
    world.patch.delenv("HF_TOKEN")
    assert problem(world, named) == (
        "not found",
        (
            f"{named} does not exist or is not public; check the name, or if it is private type: "
            f"hf auth login"
        ),
    )
    assert problem(world, "model.weights.repo=a/b/c") == (
        "no such name",
        "model.weights.repo=a/b/c is no name of a repository; write owner/name",
    )


def test_a_revision_that_does_not_exist(world: World) -> None:
    assert problem(world, "model.weights.revision=v9") == (
        "no such revision",
        (
            f"model.weights.revision=v9 is not in {WEIGHTS}; choose a branch, tag or commit of "
            f"{PAGE}/commits"
        ),
    )


def test_a_remembered_commit_that_is_gone(world: World) -> None:
    paths = ("model.tokenizer.path=here", "model.text_encoder.path=here")
    assert world.download(*paths).code == 0
    commit = world.hub.repos[WEIGHTS].commit
    world.hub.repos[WEIGHTS].files["config.json"] = b"new"
    outcome = world.download(*paths, "model.weights.format=original")
    assert outcome.stderr == (
        f"model.weights.revision=main (commit {commit[:12]}) is not in {WEIGHTS}; choose a branch, "
        f"tag or commit of {PAGE}/commits"
    )


@pytest.mark.parametrize(
    ("form", "lost", "needed"),
    [
        ("diffusers", "transformer/", "transformer/config.json, transformer/*.safetensors"),
        ("original", "model.pt", "model.pt"),
        ("nemo", "nemo/", "nemo/*"),
    ],
)
def test_a_repository_without_the_format_is_found_from_its_list(
    world: World, form: str, lost: str, needed: str
) -> None:
    files = world.hub.repos[WEIGHTS].files
    world.hub.repos[WEIGHTS].files = {p: c for p, c in files.items() if not p.startswith(lost)}
    assert problem(world, f"model.weights.format={form}") == (
        "lacks files",
        (
            f"{NAMED} has no transformer ({form}): {needed}; choose another model.weights.format "
            f"(diffusers, original, nemo) or repository"
        ),
    )


def test_a_repository_without_a_text_encoder_is_found_from_its_list(world: World) -> None:
    del world.hub.repos[T5].files["pytorch_model.bin"]
    state, line = problem(world, f"model.text_encoder.repo={T5}")
    assert state == "lacks files"
    assert line.startswith(f"model.text_encoder.repo={T5} has no text encoder: text_encoder/config")
    assert line.endswith(
        "pytorch_model.bin, tokenizer.json|spiece.model; choose another repository"
    )


def test_a_hub_that_cannot_be_reached(world: World) -> None:
    world.patch.setattr(client, "PAUSES_S", (0.0, 0.0, 0.0))
    world.patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    outcome = world.download("model.tokenizer.path=here")
    assert outcome.stderr == (
        f"{NAMED}: the Hub does not answer ({REFUSED}); look at network and proxy, HF_ENDPOINT "
        f"is http://127.0.0.1:9, then run the same command"
    )
    # said while it is being tried again
    assert outcome.stdout.count(f"the Hub does not answer ({REFUSED}); trying again in 0 s") == 3


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("503", "the Hub answers HTTP 503"),
        ("hang", "the Hub does not answer (ReadTimeout)"),
        ("garbled", "the Hub's answer cannot be understood (Unterminated string"),
    ],
)
def test_a_list_that_does_not_come_is_asked_for_again_and_then_given_up(
    world: World, kind: str, text: str
) -> None:
    world.patch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    world.hub.faults = [Fault(kind, f"api.*{WEIGHTS}", times=4)]
    state, line = problem(world)
    assert state == "no answer"
    assert line.startswith(f"{NAMED}: {text}")
    assert world.download("download.check=true").code == 0


def test_a_list_that_names_files_elsewhere_is_not_followed(world: World) -> None:
    for name in ("transformer/../../escape", "/etc/escape", "transformer//escape"):
        world.hub.repos[WEIGHTS].files[name] = b"x"
        state, line = problem(world)
        assert state == "no answer"
        assert f"({name} is no path)" in line
        del world.hub.repos[WEIGHTS].files[name]


def test_nobody_waits_longer_than_five_minutes(world: World) -> None:
    world.hub.faults = [Fault("429", f"api.*{WEIGHTS}", retry_after="3600")]
    _, line = problem(world)
    assert line.startswith(f"{NAMED}: the Hub answers HTTP 429 and asks to wait 3600 s; look at")
    world.hub.faults = [Fault("429", f"api.*{WEIGHTS}", retry_after="1")]
    outcome = world.download("download.check=true")
    assert outcome.code == 0
    assert "the Hub answers HTTP 429 and asks to wait 1 s; trying again in 1 s\n" in outcome.stdout


def test_the_command_line_prints_a_line_for_each(world: World, command: Command) -> None:
    for repo in (WEIGHTS, TOKENIZER):
        world.hub.repos[repo].is_gated = True
    outcome = command(*DOWNLOAD, cwd=world.work)
    assert outcome.code == 1
    lines = outcome.stderr.splitlines()
    assert [line.partition(" wants")[0] for line in lines] == [
        f"cosmos-hydra: {NAMED}",
        f"cosmos-hydra: model.tokenizer.repo={TOKENIZER}",
    ]
    assert list(world.work.iterdir()) == []
