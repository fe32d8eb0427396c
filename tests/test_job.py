"""The command that a finished stage suggests: short, and meaning the same when pasted."""

import shlex
from pathlib import Path

import pytest

from cosmos_hydra.job import Job
from cosmos_hydra.overrides import quote_free_text

TEXTS = ["/videos", "A robot, seen from the left", 'it\'s (a) "test" = 1', "a \\' b", "ends \\"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_suggested_command_pasted_back_means_the_same(text: str) -> None:
    overrides = tuple(quote_free_text(["stage=preprocess", f"data.prompt={text}"]))
    pasted = shlex.split(Job(Path("run"), overrides).command(stage="post_train"))
    assert pasted[:2] == ["cosmos-hydra", "stage=post_train"]
    assert quote_free_text(pasted[2:]) == [overrides[1]]


def test_a_suggested_command_shows_paths_and_prompts_as_they_were_typed() -> None:
    overrides = quote_free_text(["data=folder", "data.source=/videos", "data.prompt=A robot, left"])
    command = Job(Path("run"), tuple(overrides)).command(stage="post_train")
    shown = "cosmos-hydra stage=post_train data=folder data.source=/videos"
    assert command == f"{shown} 'data.prompt=A robot, left'"


def test_a_suggested_command_runs_where_this_one_ran() -> None:
    typed = ("stage=preprocess", "launch=torchrun"), ("hydra.launcher.nproc_per_node=2",)
    command = Job(Path("run"), *typed).command(stage="post_train")
    assert command == (
        "cosmos-hydra stage=post_train launch=torchrun hydra.launcher.nproc_per_node=2"
    )
