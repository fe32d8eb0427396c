"""A disk that is full, failing or not writable: one line, exit 1, and the same command goes on.

Errors are real where the machine allows it: a small disk in memory (needs root), a limit on the
size of files. The rest is raised where the system would raise it.
"""

import errno
import itertools
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from forked import DISK, FILLER, Ended, Hook, fill, run
from traces import assert_same, traces
from undisturbed import RUN, begin, check_what_counts, finish, whole

from cosmos_hydra.engines.torch.checkpoint import check_space
from cosmos_hydra.errors import StageError

SEED = 3
GOES_ON = "the same command goes on from here"
ADVICE = {
    errno.ENOSPC: f"no space left on device; free some space, {GOES_ON}",
    errno.EDQUOT: f"disk quota exceeded; free some of your quota, {GOES_ON}",
    errno.EFBIG: rf"file too large; allow larger files \(ulimit -f\), {GOES_ON}",
    errno.EIO: f"input/output error; look at the disk, {GOES_ON}",
    errno.EROFS: "read-only file system; make it writable, or set paths.runs, paths.samples or "
    "generate.out to another folder",
    errno.EACCES: "permission denied; change its permissions, or set paths.runs, paths.samples or "
    "generate.out to another folder",
    errno.ENOTDIR: "not a directory; remove the file that is in the way, or set paths.runs, "
    "paths.samples or generate.out to another folder",
    errno.EEXIST: "file exists; remove the file that is in the way, or set paths.runs, "
    "paths.samples or generate.out to another folder",
}


def assert_one_line(ended: Ended, number: int) -> None:
    """Check exit code 1 and the one line, which names a file that users know."""
    words = ADVICE[number]
    reason, _, advice = words.partition("; ")
    step = rf"checkpoint {RUN}/checkpoints/step_\d{{6}}"
    line = rf"[^\s:]+: {words}|{step} cannot be written \((?i:{reason})\); {advice}"
    assert re.fullmatch(rf"cosmos-hydra: ({line})\n", ended.stderr), ended.stderr
    assert ended.code == 1
    assert ".tmp" not in ended.stderr


def fail_once(stage: str, hook: Hook, number: int, cwd: Path) -> None:
    """Let a stage fail, check what it says and leaves, make room and go on to the end."""
    typed = begin(stage, cwd)
    assert_one_line(run(*typed, cwd=cwd, hooks=[hook]), number)
    check_what_counts(cwd, stage)
    if hook.do == "fill":
        (Path(hook.below) / FILLER).unlink()
    finish(*typed, cwd=cwd)
    assert_same(traces(cwd), whole(stage))


# of so many changes of the disk that a stage makes, some fail, one a run
CHANGES = {"preprocess": 230, "nemo": 340, "rarely_saved": 138, "generate": 95}
INJECTED = [
    (stage, call, number)
    for stage, count in {"preprocess": 10, "nemo": 10, "rarely_saved": 15, "generate": 15}.items()
    for call, number in zip(
        random.Random(f"{SEED} {stage}").sample(range(1, CHANGES[stage]), count),
        itertools.cycle((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)),
        strict=False,
    )
]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "call", "number"), INJECTED)
def test_a_failing_change_is_one_line(stage: str, call: int, number: int, tmp_path: Path) -> None:
    hook = Hook(DISK, call, below=str(tmp_path), do="fail", errno=number)
    fail_once(stage, hook, number, tmp_path / "cwd")


# what is being done when the disk fills up, and the bytes that are left
MOMENTS = {
    "rendering": ("preprocess", "data.sources.synthetic.render", 3, 0),
    "planning": ("preprocess", "data.prepare._fit_tokenizer", 1, 0),
    "fitting": ("nemo", "models.toy_tokenizer.ToyTokenizer.save", 1, 8192),
    "encoding": ("preprocess", "data.prepare.read_clip", 15, 4096),
    "encoding for NeMo": ("nemo", "data.prepare.read_clip", 15, 8192),
    "claiming": ("rarely_saved", "main.claim", 1, 0),
    "beginning": ("rarely_saved", "stages.post_train.write_run_facts", 1, 0),
    "showing data": ("rarely_saved", "engines.torch.previews.Previews.show_data", 1, 4096),
    "a step": ("rarely_saved", "engines.torch.trainer.Trainer._update", 6, 0),
    "a preview": ("rarely_saved", "engines.torch.previews.generate_latent", 3, 4096),
    "a save": ("rarely_saved", "engines.torch.saving.Saver._write", 2, 1 << 20),
    "an overview": ("rarely_saved", "stages.post_train.draw_overview", 1, 4096),
    "a report": ("reported", "stages.post_train.write_report", 1, 4096),
    "sampling": ("generate", "sampling.videos.generate_latent", 2, 0),
    "comparing": ("generate", "sampling.memorisation.TrainingClips.write_nearest", 3, 4096),
    "a contact sheet": ("generate", "sampling.videos.save_picture", 1, 4096),
}


def but_for(*in_ci: str) -> list[ParameterSet]:
    """Mark all moments as slow but for a few."""
    return [pytest.param(m, marks=() if m in in_ci else pytest.mark.slow) for m in MOMENTS]


@pytest.mark.parametrize("moment", but_for("encoding", "sampling"))
def test_files_that_may_not_grow_are_one_line(moment: str, tmp_path: Path) -> None:
    stage, place, call, size_bytes = MOMENTS[moment]
    hook = Hook(f"cosmos_hydra.{place}", call, do="limit", size_bytes=min(size_bytes, 100))
    fail_once(stage, hook, errno.EFBIG, tmp_path / "cwd")


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 3])
def test_a_step_whose_rows_are_not_all_written_is_done_again(call: int, tmp_path: Path) -> None:
    # the row of the step, those of its two samples
    place, within = "tracking.metrics._finite", "tracking.record.Record.step"
    hook = Hook(
        f"cosmos_hydra.{place}", call, f"cosmos_hydra.{within}", 6, do="fail", errno=errno.EIO
    )
    fail_once("rarely_saved", hook, errno.EIO, tmp_path / "cwd")


def unmount(folder: Path) -> None:
    """Unmount a disk; decoder processes hold it until they see that their parent is gone."""
    until_s = time.monotonic() + 60
    while subprocess.run(["umount", str(folder)], capture_output=True).returncode:
        assert time.monotonic() < until_s, f"somebody holds {folder}"
        time.sleep(0.1)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a small disk of its own, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root mounts a disk")
    yield folder
    unmount(folder)


@pytest.mark.parametrize("moment", but_for("a save"))
def test_a_disk_that_is_full_is_one_line(moment: str, disk: Path) -> None:
    stage, place, call, size_bytes = MOMENTS[moment]
    hook = Hook(f"cosmos_hydra.{place}", call, below=str(disk), do="fill", size_bytes=size_bytes)
    fail_once(stage, hook, errno.ENOSPC, disk / "cwd")


def test_training_does_not_begin_where_its_checkpoints_have_no_room(disk: Path) -> None:
    typed = begin("rarely_saved", disk / "cwd")
    fill(disk, 40 << 20)
    ended = run(*typed, cwd=disk / "cwd")
    assert ended.code == 1
    assert re.fullmatch(
        rf"cosmos-hydra: {RUN} has 0\.042 GB of free disk but checkpoints of 0\.029 GB "
        r"need 0\.057; free some space or set paths\.runs\n",
        ended.stderr,
    )
    assert "step 0: validation loss" not in ended.stdout


def test_a_run_that_has_a_checkpoint_needs_room_for_one_more(tmp_path: Path) -> None:
    too_large = shutil.disk_usage(tmp_path).free / 1.5
    with pytest.raises(StageError, match=r" GB of free disk but checkpoints of .* GB need "):
        check_space(tmp_path, too_large)
    manifest = tmp_path / "checkpoints/step_000001/manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    check_space(tmp_path, too_large)


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """Return a folder that takes no file, and the error number it gives."""
    folder = tmp_path / "unwritable"
    folder.mkdir(mode=0o555)
    if os.geteuid() != 0:
        yield folder, errno.EACCES
    elif subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(folder)]).returncode:
        pytest.skip("permissions do not bind root, who may not mount here")
    else:
        yield folder, errno.EROFS
        unmount(folder)


PLACES = {
    "paths.runs": "rarely_saved",
    "data.path": "preprocess",
    "data.source": "preprocess",
    "generate.out": "generate",
}


@pytest.mark.parametrize("key", PLACES)
def test_an_unwritable_folder_is_one_line(
    key: str, unwritable: tuple[Path, int], tmp_path: Path
) -> None:
    folder, number = unwritable
    typed = begin(PLACES[key], tmp_path / "cwd")
    ended = run(*typed, f"{key}={folder}/inner", cwd=tmp_path / "cwd")
    assert_one_line(ended, number)
    assert f"cosmos-hydra: {folder}/inner" in ended.stderr


@pytest.mark.parametrize("key", PLACES)
def test_a_folder_below_a_file_is_one_line(key: str, tmp_path: Path) -> None:
    typed = begin(PLACES[key], tmp_path / "cwd")
    (tmp_path / "cwd/note").write_text("mine")
    ended = run(*typed, f"{key}=note/inner", cwd=tmp_path / "cwd")
    assert_one_line(ended, errno.ENOTDIR)
    assert (tmp_path / "cwd/note").read_text() == "mine"


@pytest.mark.parametrize(
    ("stage", "typed_too", "name"),
    [
        ("rarely_saved", "name=note", "runs/note"),
        ("preprocess", "data.path=samples/note", "samples/note"),
    ],
)
def test_a_file_where_a_folder_should_be_is_one_line(
    stage: str, typed_too: str, name: str, tmp_path: Path
) -> None:
    typed = begin(stage, tmp_path / "cwd")
    file = tmp_path / "cwd" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    assert_one_line(run(*typed, typed_too, cwd=tmp_path / "cwd"), errno.EEXIST)
    assert file.read_text() == "mine"


@pytest.mark.slow
def test_a_full_disk_under_stdout_does_not_stop_a_run(tmp_path: Path) -> None:
    typed = begin("rarely_saved", tmp_path / "cwd")
    hook = Hook("cosmos_hydra.engines.torch.trainer.fill", do="mute")
    ended = run(*typed, cwd=tmp_path / "cwd", hooks=[hook])
    assert (ended.code, ended.stderr) == (0, "")
    assert_same(traces(tmp_path / "cwd"), whole("rarely_saved"))
    log = (tmp_path / "cwd" / RUN / "run.log").read_text()
    assert "nothing more is shown: stdout cannot be written (No space left on device)" in log
    assert "step 8: validation loss" in log
