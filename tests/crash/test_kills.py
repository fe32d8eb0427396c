"""kill -9 at any moment: nothing half counts, and the same command ends as if undisturbed."""

import random
import shutil
import signal
from pathlib import Path

import pytest
from forked import DISK, Hook, run
from traces import assert_same, traces
from undisturbed import begin, check_what_counts, finish, wall_s, whole

SEED = 1
SAVE = "cosmos_hydra.engines.torch.saving.Saver._write"


def kill_at_random(stage: str, folder: Path, kills: int) -> None:
    """Kill a stage's command so often, going on each time; where it ends first, begin again."""
    chosen = random.Random(f"{SEED} {stage}")
    killed = 0
    while killed < kills:
        cwd = folder / str(killed)
        typed = begin(stage, cwd)
        code = -signal.SIGKILL
        while code != 0 and killed < kills:
            ended = run(*typed, cwd=cwd, kill_s=chosen.uniform(0.1, 0.9) * wall_s(stage))
            code = ended.code
            if code != 0:
                assert (code, ended.stderr) == (-signal.SIGKILL, "")
                check_what_counts(cwd, stage)
                killed += 1
        finish(*typed, cwd=cwd)
        assert_same(traces(cwd), whole(stage))
        shutil.rmtree(cwd)


def kill_at_change(stage: str, folder: Path, call: int, within: str = "") -> bool:
    """Kill a stage at its n-th change of the disk, go on, and return whether it has so many."""
    cwd = folder / str(call)
    typed = begin(stage, cwd)
    # the fifth save is the second that removes an old checkpoint
    hook = Hook(DISK, call, within, within_call=5, below=str(cwd))
    ended = run(*typed, cwd=cwd, hooks=[hook])
    if ended.code == 0:
        return False
    assert (ended.code, ended.stderr) == (-signal.SIGKILL, "")
    check_what_counts(cwd, stage)
    finish(*typed, cwd=cwd)
    assert_same(traces(cwd), whole(stage))
    shutil.rmtree(cwd)
    return True


@pytest.mark.parametrize("stage", ["preprocess", "post_train", "generate"])
def test_two_kills_at_random_times(stage: str, tmp_path: Path) -> None:
    kill_at_random(stage, tmp_path, 2)


@pytest.mark.parametrize("call", random.Random(SEED).sample(range(1, 30), 1))
def test_a_kill_at_one_change_of_the_disk_in_a_save(tmp_path: Path, call: int) -> None:
    assert kill_at_change("post_train", tmp_path, call, SAVE)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("stage", "kills"), [("preprocess", 20), ("nemo", 15), ("post_train", 40), ("generate", 25)]
)
def test_a_hundred_kills_at_random_times(stage: str, kills: int, tmp_path: Path) -> None:
    kill_at_random(stage, tmp_path, kills)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("stage", "within", "stride", "fewest"),
    [
        ("post_train", SAVE, 1, 30),
        ("post_train", "", 41, 10),
        ("preprocess", "", 9, 20),
        ("nemo", "", 23, 20),
        ("generate", "", 5, 10),
    ],
)
def test_kills_at_changes_of_the_disk(
    stage: str, within: str, stride: int, fewest: int, tmp_path: Path
) -> None:
    call = 1
    while kill_at_change(stage, tmp_path, call, within):
        call += stride
    assert call // stride >= fewest
