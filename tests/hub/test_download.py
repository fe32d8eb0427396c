"""stage=download fetches what a config needs, once, verified, into the ordinary cache of the Hub."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Command
from hub_server import settle
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


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with world_of(tmp_path, monkeypatch) as made:
        yield made


def test_everything_a_model_needs_is_fetched_and_nothing_else(
    world: World, command: Command
) -> None:
    outcome = command(*DOWNLOAD, cwd=world.work)
    print(outcome)
    assert (outcome.code, outcome.stderr) == (0, "")
    wanted = world.expected(WEIGHTS, "transformer/", "text_encoder/", "tokenizer/")
    assert world.fetched(WEIGHTS) == wanted
    assert world.fetched(TOKENIZER) == world.expected(TOKENIZER, "vae/")
    assert world.hub.content_bytes == sum(
        len(data) for repo in (WEIGHTS, TOKENIZER) for data in world.fetched(repo).values()
    )
