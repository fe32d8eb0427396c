"""SIGTERM and SIGUSR2: exit 75 with one line, and the same command ends as if undisturbed.

A signal comes when one of our functions is called for the n-th time; at start-up, in a process of
its own, some time after the handler is there.
"""

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import Hook, run
from traces import assert_same, traces
from undisturbed import RUN, STAGES, begin, check_what_counts, finish, whole

from cosmos_hydra import runs

SAVE = "cosmos_hydra.engines.torch.saving.Saver._write"
TERM, USR2 = int(signal.SIGTERM), int(signal.SIGUSR2)
STOPPED = re.compile(
    r"cosmos-hydra: stopped by (SIGTERM|SIGUSR2|a signal at step \d of runs/tiny-synthetic); "
    r"the same command goes on from t?here\n"
)


def at(place: str, call: int, *numbers: int, within: str = "", do: str = "signal") -> Hook:
    return Hook(f"cosmos_hydra.{place}", call, within, do=do, numbers=numbers)


def in_step(call: int, *numbers: int, do: str = "signal") -> Hook:
    return Hook("cosmos_hydra.engines.torch.step.clip", call, do=do, numbers=numbers)


def in_save(call: int, *numbers: int) -> Hook:
    return at("files.sync", call, *numbers, within=SAVE)


# what happens in which stage, and the last step that is on disk then
MOMENTS = {
    "composing": ("preprocess", [at("main.settle", 1, TERM)], None),
    "rendering": ("preprocess", [at("data.sources.synthetic.render", 4, USR2)], None),
    "fitting": ("preprocess", [at("data.prepare.read_clip", 5, TERM)], None),
    "encoding": ("preprocess", [at("data.prepare.read_clip", 15, USR2)], None),
    "writing a sample": ("preprocess", [at("files.sync", 31, TERM)], None),
    "both while encoding": ("nemo", [at("data.prepare.read_clip", 15, TERM, USR2)], None),
    "a storm while encoding": ("nemo", [at("data.prepare.read_clip", 15, TERM, do="storm")], None),
    "building": ("rarely_saved", [at("engines.torch.trainer.build_transformer", 1, USR2)], None),
    "filling": ("rarely_saved", [at("engines.torch.trainer.fill", 1, TERM)], None),
    "before a step": ("rarely_saved", [at("engines.torch.validation.denoise", 1, TERM)], None),
    "a step": ("rarely_saved", [in_step(3, TERM)], 3),
    "both in a step": ("rarely_saved", [in_step(3, USR2, TERM)], 3),
    "a validation": ("rarely_saved", [at("engines.torch.validation.denoise", 3, USR2)], 4),
    "a preview": ("rarely_saved", [at("engines.torch.previews.generate_latent", 3, TERM)], 4),
    "the last preview": (
        "rarely_saved",
        [at("engines.torch.previews.generate_latent", 6, USR2)],
        8,
    ),
    # training goes on meanwhile
    "a save": ("rarely_saved", [in_save(2, USR2)], range(4, 9)),
    "the save it led to": (
        "rarely_saved",
        [in_step(3, TERM), in_save(1, TERM), in_save(4, TERM, USR2), in_save(7, USR2)],
        3,
    ),
    "a storm from a step on": ("rarely_saved", [in_step(5, TERM, do="storm")], 5),
    "the report": ("reported", [at("stages.post_train.write_report", 1, TERM)], 8),
    "going": ("rarely_saved", [at("main._discard_if_unused", 1, USR2)], 8),
    "sampling": ("generate", [at("sampling.videos.generate_latent", 2, TERM)], 8),
    "writing a video": ("generate", [at("sampling.videos.write_mp4", 3, USR2)], 8),
    "comparing": (
        "generate",
        [at("sampling.memorisation.TrainingClips.write_nearest", 2, TERM)],
        8,
    ),
}
IN_CI = ("encoding", "a preview", "a storm from a step on", "sampling")


@pytest.mark.parametrize(
    "moment",
    [pytest.param(name, marks=() if name in IN_CI else pytest.mark.slow) for name in MOMENTS],
)
def test_a_stopped_command_goes_on_to_the_same_end(moment: str, tmp_path: Path) -> None:
    stage, hooks, last_step = MOMENTS[moment]
    cwd = tmp_path / "cwd"
    typed = begin(stage, cwd)
    ended = run(*typed, cwd=cwd, hooks=hooks)
    assert ended.code == 75
    assert STOPPED.fullmatch(ended.stderr)
    found = (runs.steps(cwd / RUN) or [None])[-1]
    assert found in (last_step if isinstance(last_step, range) else [last_step])
    check_what_counts(cwd, stage)
    finish(*typed, cwd=cwd)
    assert_same(traces(cwd), whole(stage))


def started(cwd: Path) -> tuple["subprocess.Popen[str]", float]:
    """Start a process as users do and wait until it heeds SIGTERM, which takes so many seconds."""
    began_s = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "cosmos_hydra", *STAGES["preprocess"].typed],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    status = Path(f"/proc/{process.pid}/status")
    while not is_caught(status.read_text()):
        assert process.poll() is None
        time.sleep(0.001)
    return process, time.monotonic() - began_s


def is_caught(status: str) -> bool:
    mask = re.search(r"^SigCgt:\t(\w+)$", status, re.MULTILINE)
    return mask is not None and bool(int(mask[1], 16) >> (TERM - 1) & 1)


def stop_at_start_up(later_s: float, number: int, cwd: Path) -> None:
    """Send a signal so long after the handler is there, and check the end."""
    process, _ = started(cwd)
    time.sleep(later_s)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    name = signal.Signals(number).name
    assert stderr == f"cosmos-hydra: stopped by {name}; the same command goes on from here\n"
    assert process.returncode == 75


@pytest.mark.parametrize(
    ("later_s", "number"), [(0.0, TERM), (0.05, USR2), (0.2, TERM), (0.4, USR2), (0.8, TERM)]
)
def test_a_signal_at_start_up_is_one_line(later_s: float, number: int, tmp_path: Path) -> None:
    stop_at_start_up(later_s, number, tmp_path)


def test_a_signal_while_torch_is_imported_is_one_line(tmp_path: Path) -> None:
    process, _ = started(tmp_path)
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch_cpu" not in maps.read_text():
        time.sleep(0.001)
    process.send_signal(TERM)
    _, stderr = process.communicate(timeout=120)
    assert stderr == "cosmos-hydra: stopped by SIGTERM; the same command goes on from here\n"
    assert process.returncode == 75


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_signals_at_start_up(tmp_path: Path) -> None:
    moments = random.Random(0)
    for number in (TERM, USR2) * 100:
        stop_at_start_up(moments.uniform(0, 1.5), number, tmp_path)
    finish(*STAGES["preprocess"].typed, cwd=tmp_path)
    assert_same(traces(tmp_path), whole("preprocess"))


EXITING = """
import atexit, signal, sys
# what is registered first is called last
atexit.register(lambda: signal.raise_signal({number}))
sys.argv = ["cosmos-hydra", {argument!r}]
from cosmos_hydra.__main__ import run
run()
"""


@pytest.mark.parametrize(
    ("argument", "code", "text"),
    [("--help", 0, ""), ("stage=train", 2, "cosmos-hydra: .*stage=train.*\n")],
)
@pytest.mark.parametrize("number", [TERM, USR2])
def test_a_signal_while_exiting_changes_nothing(
    argument: str, code: int, text: str, number: int, tmp_path: Path
) -> None:
    program = EXITING.format(number=number, argument=argument)
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == code
    assert re.fullmatch(text, ended.stderr)
