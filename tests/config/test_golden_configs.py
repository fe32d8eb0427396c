"""What `--cfg job` shows, compared with reviewed files: a changed default shows in the diff."""

from pathlib import Path

import pytest
from composing import composed
from conftest import Command

from cosmos_hydra.config import load

GOLDEN = Path(__file__).parent / "golden"


RECIPES = [
    f"cosmos_diffusion_{size}_{task}_finetune"
    for size in ("7b", "14b")
    for task in ("text2world", "video2world")
]


@pytest.mark.parametrize(
    "chosen",
    [
        *(f"model={m}" for m in ("tiny", "tiny_video2world", "7b", "14b")),
        *(f"experiment={r}" for r in RECIPES),
    ],
)
def test_the_composed_config_is_the_reviewed_one(
    command: Command, tmp_path: Path, chosen: str
) -> None:
    shown = command("--cfg", "job", chosen, cwd=tmp_path)
    golden = GOLDEN / f"{chosen.partition('=')[2]}.yaml"
    assert (shown.code, shown.stderr) == (0, "")
    assert shown.stdout == golden.read_text(), (
        f"a default has changed; if that is meant, run: "
        f"cosmos-hydra --cfg job {chosen} > tests/config/golden/{golden.name}"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipes_are_those_of_nemo(recipe: str) -> None:
    """The numbers of NVIDIA's NeMo recipes of these names, written down a second time."""
    overrides = (f"experiment={recipe}", "data.source=videos", "data.path=samples")
    config = load(composed(*overrides))
    optim, trainer, parallel = config.optim, config.trainer, config.parallel
    assert (optim.lr, optim.schedule.name, optim.warmup_steps) == (1e-6, "constant", 0)
    assert (optim.weight_decay, optim.betas, optim.eps) == (0, [0.9, 0.999], 1e-8)
    assert (optim.grad_clip, parallel.precision.name) == (1.0, "bf16")
    assert (trainer.max_steps, trainer.save_every, trainer.keep) == (1000, 200, 0)
    assert (trainer.global_batch_size, trainer.micro_batch_size) == (1, 1)
    assert (parallel.tp, parallel.sequence_parallel, parallel.cp) == (8, True, 1)
    assert parallel.dp_shard == -1
    assert parallel.recompute.name == ("full" if recipe.count("14b") else "none")
    assert (config.data.frames, config.data.height, config.data.width) == (121, 704, 1280)
    assert (config.model.weights.path, config.model.weights.from_scratch) == (None, False)
