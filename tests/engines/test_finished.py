"""A run that has reached its last step says so, unless its last validation is still missing."""

import json
from pathlib import Path

import pytest
from conftest import SMALL, Command

TRAIN = ("stage=pipeline", "pipeline.stages=[preprocess,post_train]", *SMALL)


@pytest.mark.parametrize(("max_steps", "is_finished"), [(3, True), (4, False)])
def test_a_run_stopped_before_its_last_validation_makes_it_up_at_its_last_step_only(
    command: Command, tmp_path: Path, max_steps: int, is_finished: bool
) -> None:
    assert command(*TRAIN, cwd=tmp_path).code == 0
    metrics = tmp_path / "runs/tiny-synthetic/metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    kept = [row for row in rows if row["step"] < 4 or "loss" in row]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in kept))
    again = command(*TRAIN, f"trainer.max_steps={max_steps}", cwd=tmp_path)
    assert again.code == 0
    assert ("has finished at step 4" in again.stdout) == is_finished
    assert ("step 4: validation loss" in again.stdout) != is_finished
