"""What a kill leaves is removed by whoever has the folder next, and nothing else is."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from small_runs import small_config, train

from cosmos_hydra import files, runs
from cosmos_hydra.engines.torch.checkpoint import newest
from cosmos_hydra.logs import logging_to
from cosmos_hydra.signals import STOPPING, ending_when_interrupted


def test_only_temporary_files_are_removed(tmp_path: Path) -> None:
    leftovers = [".0.info.321.tmp.json", ".step_4_0.7.tmp.mp4", ".run.99.tmp", ".tmpAb3_9z"]
    others = [".tmp", ".lock", "a.tmp", ".notes.tmp.txt", ".vimrc.12.tmp~", "1.tmp.json", "x.json"]
    for name in (*leftovers, *others):
        (tmp_path / name).write_text("x")
    (tmp_path / "below").mkdir()
    (tmp_path / "below/.a.1.tmp").write_text("x")
    files.remove_leftovers(tmp_path, tmp_path / "absent")
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {*others, "below"}
    assert (tmp_path / "below/.a.1.tmp").exists()


def test_of_a_shared_folder_only_ones_own_are_removed(tmp_path: Path) -> None:
    names = [".arm.plan.5.tmp.json", ".arms.plan.5.tmp.json", ".tmpAb3_9z"]
    for name in names:
        (tmp_path / name).write_text("x")
    files.remove_leftovers(tmp_path, prefix=".arm.")
    assert sorted(path.name for path in tmp_path.iterdir()) == names[1:]


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(28, "No space left on device"), 28),
        (SafetensorError("I/O error: File too large (os error 27)"), 27),
        (RuntimeError("open file failed with strerror: Read-only file system"), 30),
    ],
)
def test_an_error_of_the_disk_names_the_file_whichever_library_met_it(
    error: Exception, number: int, tmp_path: Path
) -> None:
    path = tmp_path / "0.latent"

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        files.write_with(path, fail)
    assert (caught.value.errno, caught.value.filename) == (number, str(path))
    assert list(tmp_path.iterdir()) == []


def test_an_error_hidden_by_a_library_is_found_behind_its_own(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        with Path("/dev/full").open("wb", buffering=0) as file:
            torch.save(torch.zeros(1 << 16), file)

    with pytest.raises(OSError, match="No space left on device"):
        files.write_with(tmp_path / "0.pth", fail)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        raise ValueError("fps is 0")

    with pytest.raises(ValueError, match="fps is 0"):
        files.write_with(tmp_path / "x", fail)


def test_a_damaged_newer_checkpoint_does_not_push_out_the_one_just_saved(
    small_samples: Path, tmp_path: Path
) -> None:
    quick = ("trainer.validate_every=0", "trainer.keep=1")
    train(small_config(small_samples, *quick, "trainer.keep=0"), tmp_path)
    assert runs.steps(tmp_path) == [2, 4]
    weights = runs.step_folder(tmp_path, 4) / "state/__0_0.distcp"
    weights.write_bytes(weights.read_bytes()[:-1])
    # begins at step 2 again, and keeps what it saves at step 3
    train(small_config(small_samples, *quick, "trainer.max_steps=3"), tmp_path)
    assert runs.steps(tmp_path) == [3]
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 3


def test_a_checkpoint_that_a_kill_cut_short_goes_even_if_its_step_is_not_saved_again(
    small_samples: Path, tmp_path: Path
) -> None:
    left = runs.step_folder(tmp_path, 3).with_suffix(".tmp")
    (left / "transformer").mkdir(parents=True)
    train(small_config(small_samples, "trainer.validate_every=0"), tmp_path)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step_000002",
        "step_000004",
    ]


def test_previews_of_an_abandoned_try_are_made_again(small_samples: Path, tmp_path: Path) -> None:
    config = small_config(small_samples, "trainer.preview_every=2", "trainer.validate_every=0")
    train(config, tmp_path)
    previews = {path: path.read_bytes() for path in (tmp_path / "previews").iterdir()}
    for path in previews:
        path.write_bytes(b"of other settings")
    runs.step_folder(tmp_path, 4).rename(tmp_path / "step_000004")  # back to step 2
    train(config, tmp_path)
    again = {path: path.read_bytes() for path in (tmp_path / "previews").iterdir()}
    assert again.keys() == previews.keys()
    changed = {path.name for path in previews if again[path] == previews[path]}
    assert changed == {"step_000004.png", "step_000004_0.mp4", "step_000004_1.mp4"}


def test_a_log_that_cannot_be_written_ends_with_a_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "run.log"
    log.symlink_to("/dev/full")
    with logging_to(log, False):
        for text in ("one", "two"):
            logging.getLogger("cosmos_hydra").info(text)
    printed = capfd.readouterr()
    warning = f"warning: {log} ends here: [Errno 28] No space left on device\n"
    assert (printed.out, printed.err) == (f"one\n{warning}two\n", "")


@pytest.fixture
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
def test_nothing_interrupts_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, ending_when_interrupted():
        raise KeyboardInterrupt
    assert stop.value.code == 130
    for number in STOPPING:
        signal.raise_signal(number)
    text = "cosmos-hydra: interrupted; the same command goes on from here\n"
    assert capsys.readouterr().err == text
