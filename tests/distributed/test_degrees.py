"""Degrees that do not fit the job, the model or the batch: one line each, before anything is built.

A job of several ranks is asked for here by its environment alone; nothing joins it.
"""

import re
from pathlib import Path

import pytest
import torch
from conftest import SMALL, Command
from small_runs import small_config

from cosmos_hydra import main
from cosmos_hydra.engines.torch.degrees import Degrees, degrees_of
from cosmos_hydra.engines.torch.mesh import join
from cosmos_hydra.errors import ConfigError

# of SMALL: 4 heads, 24 tokens a clip, 2 samples a step
CASES = {
    "too many": (
        4,
        ("parallel.dp_shard=2", "parallel.tp=4"),
        (
            "parallel.dp_replicate=1 parallel.dp_shard=2 parallel.cp=1 parallel.tp=4 do not "
            "multiply to the 4 ranks of this job; start 8 ranks, or set one of them to -1 "
            "(what is left)"
        ),
    ),
    "too few": (
        4,
        ("parallel.tp=2",),
        (
            "parallel.dp_replicate=1 parallel.dp_shard=1 parallel.cp=1 parallel.tp=2 do not "
            "multiply to the 4 ranks of this job; start 2 ranks, or set one of them to -1 "
            "(what is left)"
        ),
    ),
    "nothing is left": (
        4,
        ("parallel.dp_shard=-1", "parallel.cp=3"),
        (
            "parallel.dp_replicate=1 parallel.dp_shard=-1 parallel.cp=3 parallel.tp=1 do not "
            "multiply to the 4 ranks of this job; start a multiple of 3 ranks"
        ),
    ),
    "two are left": (
        4,
        ("parallel.dp_replicate=-1", "parallel.cp=-1"),
        (
            "parallel.dp_replicate=-1 parallel.cp=-1 cannot all be what is left; "
            "set all but one to a number"
        ),
    ),
    "none and fewer": (
        1,
        ("parallel.cp=0", "parallel.tp=-2"),
        (
            "parallel.cp=0 is no number of ranks; at least 1, or -1 (what is left)\n"
            "parallel.tp=-2 is no number of ranks; at least 1, or -1 (what is left)"
        ),
    ),
    "heads": (
        6,
        ("parallel.tp=6", "model.num_heads=4"),
        "parallel.tp=6 does not divide model.num_heads=4; use one of 1, 2, 4",
    ),
    "tokens": (
        5,
        ("parallel.cp=5",),
        (
            "parallel.cp=5 parallel.tp=1 share the 24 tokens of a clip among 5 ranks, which do "
            "not divide them; change data.height, data.width or data.frames, or a degree"
        ),
    ),
    "tokens over tp too": (
        16,
        ("parallel.cp=4", "parallel.tp=4", "model.num_heads=4"),
        (
            "parallel.cp=4 parallel.tp=4 share the 24 tokens of a clip among 16 ranks, which do "
            "not divide them; change data.height, data.width or data.frames, or a degree"
        ),
    ),
    "samples": (
        4,
        ("parallel.dp_replicate=2", "parallel.dp_shard=2"),
        (
            "trainer.global_batch_size=2 is not divisible by the 4 data-parallel ranks; "
            "use a multiple of 4"
        ),
    ),
    "heads, tokens and samples": (
        75,
        ("parallel.dp_shard=-1", "parallel.tp=5", "parallel.cp=5", "model.num_heads=4"),
        (
            "parallel.tp=5 does not divide model.num_heads=4; use one of 1, 2, 4\n"
            "parallel.cp=5 parallel.tp=5 share the 24 tokens of a clip among 25 ranks, which do "
            "not divide them; change data.height, data.width or data.frames, or a degree\n"
            "trainer.global_batch_size=2 is not divisible by the 3 data-parallel ranks; "
            "use a multiple of 3"
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_degrees_that_do_not_fit_are_refused_with_what_would(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world_size, overrides, message = CASES[name]
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        join(small_config(Path(), *overrides), torch.device("cpu"))


@pytest.mark.parametrize(("rank", "is_said"), [(0, True), (1, False)])
def test_of_all_ranks_the_first_says_it_in_a_line_and_each_exits_with_2(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
    is_said: bool,
) -> None:
    world_size, overrides, message = CASES["too few"]
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(main, "leave_after_the_first", lambda: None)
    refused = command("stage=post_train", *SMALL, *overrides, cwd=tmp_path)
    assert refused.code == 2
    assert refused.stderr == (f"cosmos-hydra: {message}\n" if is_said else "")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_is_left_goes_to_the_open_axis() -> None:
    parallel = small_config(Path(), "parallel.dp_shard=-1", "parallel.tp=2").parallel
    assert degrees_of(parallel, 8) == Degrees(dp_replicate=1, dp_shard=4, cp=1, tp=2)
    assert degrees_of(parallel, 2) == Degrees(dp_replicate=1, dp_shard=1, cp=1, tp=2)
