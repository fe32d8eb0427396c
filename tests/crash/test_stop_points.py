"""A run stopped by a signal after any of its steps ends, resumed, bitwise like one in one go."""

import random
import signal
from pathlib import Path

import pytest
from small_runs import assert_same_tensors, rows_of, small_config, state_of, train, trainer_of

from cosmos_hydra import runs
from cosmos_hydra.config import Config
from cosmos_hydra.engines.torch.trainer import Trainer
from cosmos_hydra.errors import Preempted
from cosmos_hydra.tracking import metrics

STEPS = 40
STOPS = range(1, STEPS)
# a rate that differs at every step, odd batches over the ends of epochs, two micro-batches
SETTINGS = (
    *(f"trainer.max_steps={STEPS}", "trainer.save_every=0", "trainer.validate_every=8"),
    *("trainer.global_batch_size=3", "trainer.micro_batch_size=2"),
    *("optim.schedule=cosine", "optim.warmup_steps=5"),
)


@pytest.fixture(scope="module")
def config(small_samples: Path) -> Config:
    return small_config(small_samples, *SETTINGS)


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run without a stop."""
    run = tmp_path_factory.mktemp("whole")
    train(config, run)
    return run


def stop_and_resume(config: Config, stop: int, run: Path, whole: Path) -> None:
    update = Trainer._update

    def interrupted(self: Trainer, ids: list, batches: list) -> tuple:
        row = update(self, ids, batches)
        if self.step == stop:
            signal.raise_signal(signal.SIGTERM)
        return row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_update", interrupted)
        with pytest.raises(Preempted, match=f"stopped by a signal at step {stop} of {run};"):
            train(config, run)
    assert runs.steps(run) == [stop]
    resumed = trainer_of(config, run)
    assert resumed.step == stop
    resumed.train()
    assert runs.steps(run) == [stop, STEPS]
    assert_same_tensors(state_of(run, STEPS), state_of(whole, STEPS))
    assert rows_of(run) == rows_of(whole)
    assert metrics.read(run / "losses.jsonl") == metrics.read(whole / "losses.jsonl")


@pytest.mark.parametrize("stop", random.Random(0).sample(STOPS, 3))
def test_three_stop_points(config: Config, stop: int, whole: Path, tmp_path: Path) -> None:
    stop_and_resume(config, stop, tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("stop", STOPS)
def test_every_stop_point(config: Config, stop: int, whole: Path, tmp_path: Path) -> None:
    stop_and_resume(config, stop, tmp_path, whole)
