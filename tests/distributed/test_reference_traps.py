"""What parallel training of these models has got wrong elsewhere, a test each.

4 ranks, cp 2 x tp 2, do a step and generate, twice; each rank's own numbers equal one process's.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from noting_cases import note_twice, notes_of
from ranks import run

TOLERANCE = 1e-5
SETTINGS = (
    *("model.num_heads=4", "model.head_dim=24", "model.objective.text_dropout=0.25"),
    *("trainer.global_batch_size=4", "trainer.micro_batch_size=2"),
    "optim.grad_clip=null",  # would hide that all gradients are too large
)
TABLES = [f"learnable_pos_embed.pos_emb_{axis}" for axis in "thw"]
TIME = [f"time_embed.{n}.weight" for n in ("t_embedder.linear_1", "t_embedder.linear_2", "norm")]
BLOCKS = [f"transformer_blocks.{number}" for number in (0, 1)]
ADALN = [
    f"{norm}.linear_{number}.weight"
    for norm in (*(f"{block}.norm{n}" for block in BLOCKS for n in (1, 2, 3)), "norm_out")
    for number in (1, 2)
]
HEAD_NORMS = [
    f"{block}.attn{n}.norm_{which}.weight" for block in BLOCKS for n in (1, 2) for which in "qk"
]
TP_PAIRS = ((0, 1), (2, 3))  # tp is innermost


@pytest.fixture(scope="module")
def alone(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what one process noted."""
    folder = tmp_path_factory.mktemp("alone")
    run(1, note_twice, small_samples, SETTINGS, folder)
    return dict(notes_of(folder, 1)[0])


@pytest.fixture(scope="module")
def ranks(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each of four ranks noted."""
    folder = tmp_path_factory.mktemp("ranks")
    run(4, note_twice, small_samples, (*SETTINGS, "parallel.cp=2", "parallel.tp=2"), folder)
    return notes_of(folder, 4)


def assert_equal_on_every_rank(
    names: list[str], ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    """Compare the gradients of parameters."""
    for rank, notes in enumerate(ranks):
        for name in names:
            wanted = alone["gradients"][name]
            error = (notes["gradients"][name] - wanted).norm() / wanted.norm()
            assert wanted.norm() > 0, name
            assert error < TOLERANCE, (rank, name)


def test_position_tables_time_embedding_and_adaln_are_not_detached(
    ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    assert_equal_on_every_rank([*TABLES, *TIME, *ADALN], ranks, alone)
    for notes in ranks:
        without = [n for n in (*TABLES, *TIME, *ADALN) if not notes["gradients"][n].any()]
        assert without == []


def test_gradients_of_what_tp_does_not_split_are_summed_over_tp(
    ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    shared = [name for name in alone["gradients"] if name not in ranks[0]["split over tp"]]
    assert set(shared) == {
        *(*TABLES, *TIME, *ADALN, *HEAD_NORMS),
        *("patch_embed.proj.weight", "proj_out.weight"),
    }
    assert_equal_on_every_rank(shared, ranks, alone)
    for one, other in TP_PAIRS:
        pairs = [(ranks[one]["gradients"][n], ranks[other]["gradients"][n]) for n in shared]
        assert all(torch.equal(*pair) for pair in pairs)


def test_the_gradient_of_the_output_projection_is_not_once_too_often_for_each_tp_rank(
    ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    name = "proj_out.weight"
    wanted = alone["gradients"][name].norm().item()
    found = [notes["gradients"][name].norm().item() for notes in ranks]
    assert found == pytest.approx([wanted] * 4, rel=TOLERANCE)


def test_a_second_pass_over_the_same_batch_is_that_of_the_first(
    ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    for notes in (alone, *ranks):
        first, second = notes["losses"]
        assert first == second
        assert first == pytest.approx(alone["losses"][0], rel=TOLERANCE)
        assert notes["changed"] == []


def test_guidance_and_a_second_preview_see_the_whole_clip(
    ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    wanted = alone["latents"][0]
    for notes in (alone, *ranks):
        first, second = notes["latents"]
        assert torch.equal(first, second)
        torch.testing.assert_close(first, wanted, rtol=1e-4, atol=1e-4)
