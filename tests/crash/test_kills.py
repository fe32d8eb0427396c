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


# what is being done when the next file that grows longer than so many bytes is the last
CUTS = {
    "rendering": ("preprocess", "data.sources.synthetic.render", 3, 1000),
    "fitting": ("nemo", "models.toy_tokenizer.ToyTokenizer.save", 1, 1000),
    "encoding": ("preprocess", "data.prepare.read_clip", 15, 500),
    "encoding for NeMo": ("nemo", "data.prepare.read_clip", 15, 500),
    "a step": ("rarely_saved", "tracking.record.Record.step", 6, 1200),
    "a preview": ("rarely_saved", "engines.torch.previews.write_mp4", 4, 1000),
    "a save": ("rarely_saved", "engines.torch.saving.Saver._write", 2, 1 << 20),
    "the end of a save": ("rarely_saved", "engines.torch.saving.Saver._write", 2, 20 << 20),
    "a report": ("reported", "stages.post_train.write_report", 1, 20000),
    "a video": ("generate", "sampling.videos.write_mp4", 3, 1000),
    "a contact sheet": ("generate", "sampling.videos.save_picture", 1, 3000),
}


@pytest.mark.parametrize(
    "moment",
    [pytest.param(m, marks=() if m == "encoding" else pytest.mark.slow) for m in CUTS],
)
def test_a_kill_in_the_middle_of_a_write(moment: str, tmp_path: Path) -> None:
    stage, place, call, size_bytes = CUTS[moment]
    cwd = tmp_path / "cwd"
    typed = begin(stage, cwd)
    hook = Hook(f"cosmos_hydra.{place}", call, do="cut", size_bytes=size_bytes)
    ended = run(*typed, cwd=cwd, hooks=[hook])
    assert (ended.code, ended.stderr) == (-signal.SIGXFSZ, "")
    check_what_counts(cwd, stage)
    finish(*typed, cwd=cwd)
    assert_same(traces(cwd), whole(stage))


@pytest.mark.parametrize(
    ("stage", "kills"), [("preprocess", 1), ("post_train", 2), ("generate", 1)]
)
def test_a_few_kills_at_random_times(stage: str, kills: int, tmp_path: Path) -> None:
    kill_at_random(stage, tmp_path, kills)


@pytest.mark.parametrize("call", random.Random(SEED).sample(range(1, 33), 1))
def test_a_kill_at_one_change_of_the_disk_in_a_save(tmp_path: Path, call: int) -> None:
    assert kill_at_change("post_train", tmp_path, call, SAVE)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("stage", "kills"), [("preprocess", 50), ("nemo", 50), ("post_train", 40), ("generate", 25)]
)
def test_many_kills_at_random_times(stage: str, kills: int, tmp_path: Path) -> None:
    kill_at_random(stage, tmp_path, kills)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("stage", "within", "stride", "fewest"),
    [
        ("post_train", SAVE, 1, 25),
        ("post_train", "", 25, 10),
        ("preprocess", "", 11, 20),
        ("nemo", "", 19, 15),
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
