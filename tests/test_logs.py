"""What a user reads: first and last lines of every stage, bars and plain lines, and run.log."""

import fcntl
import logging
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from conftest import REPORTED, SMALL, Command
from small_runs import SAMPLES

from cosmos_hydra import logs
from cosmos_hydra.job import command_line
from cosmos_hydra.logs import Progress, duration

RUN = "runs/tiny-synthetic"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) [\w.]+: \S")
SPANS = re.compile(r"\d[\d.]*( s| GB|/s)\b")
LOSSES = "validation loss N.N (gaussian N.N, linear N.N)"
FROM_TO = "validation loss N.N -> N.N (gaussian N.N, linear N.N)"


def plain(text: str) -> list[str]:
    """Return lines with every measured number as N."""
    assert not CONTROL.search(text)
    text = SPANS.sub(r"N\1", text)
    text = re.sub(r"(loss|gaussian|linear|->|lr|val) \d+\.\d+", r"\1 N.N", text)
    text = re.sub(r"sha256 \w+", "sha256 HASH", text)
    return re.sub(r"_\w{6}\.mp4", "_HASH.mp4", text).splitlines()


def test_every_stage_says_what_it_does_first_and_what_to_do_next_last(
    command: Command, tmp_path: Path
) -> None:
    typed = (*REPORTED, "trainer.validate_every=4", "generate.prompt=red", "name=my run")
    done = command("stage=pipeline", *typed, cwd=tmp_path)
    assert (done.code, done.stderr) == (0, "")
    follow_up = ("stage=generate", "checkpoint=runs/my run", "generate.prompt=What to show")
    assert plain(done.stdout) == [
        "== preprocess ==",
        "render 6/6 videos in N s",
        "look 6/6 videos in N s",
        "found 6 videos = kept 6 + skipped 0 + failed 0",
        "12 clips of 9 frames at 48x64: 10 to train on, 2 held out",
        "captions from sidecar (6)",
        f"encoding with the toy tokenizer and the hash text encoder on cpu, into {SAMPLES}",
        "fit tokenizer 10/10 clips in N s",
        "samples: 12 to make, 0 there",
        "encode text 6/6 captions in N s",
        "encode clips 12/12 clips in N s",
        "made 12 of 12 samples",
        f"samples: {SAMPLES}, 10 to train on, 2 held out",
        "== post_train ==",
        "starting from random weights",
        "tiny: 2.4 M parameters on cpu in fp32; run runs/my run, steps 0 to 4",
        f"data: {SAMPLES}, 10 samples to train on, 2 held out; 2 a step",
        f"step 0: {LOSSES}",
        "post_train 4/4 steps in N s, loss N.N lr N.N val N.N",
        f"step 4: {LOSSES}",
        f"trained 4 steps, N s each (median), peak memory N GB; {FROM_TO}",
        "picture: runs/my run/overview.png",
        "report: runs/my run/report.html",
        "== generate ==",
        (
            "generating with step 4 of runs/my run (sha256 HASH) on cpu: "
            "1 video of 9 frames at 48x64, 2 steps each, into runs/my run/videos"
        ),
        "generate 2/2 steps in N s",
        "video: runs/my run/videos/red_seed1_HASH.mp4",
        "picture: runs/my run/videos/contact_sheet.png",
        "picture: runs/my run/overview.png",
        "report: runs/my run/report.html",
        f"next: {command_line(*follow_up)}",
    ]
    for stage, suggested in (
        ("stage=preprocess", ("stage=post_train", *typed)),
        ("stage=post_train", ("stage=generate", "checkpoint=runs/my run")),
    ):
        again = command(stage, *typed, "log.report=false", cwd=tmp_path)
        assert (again.code, again.stderr) == (0, "")
        program, *pasted = shlex.split(again.stdout.splitlines()[-1].removeprefix("next: "))
        assert (program, [item for item in pasted if item != "log.report=false"]) == (
            "cosmos-hydra",
            list(suggested),
        )
    assert command(*follow_up, "generate.steps=1", "log.report=false", cwd=tmp_path).code == 0


def test_the_log_has_what_was_shown_with_the_time_of_each_line_and_no_refusals(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    typed = ("stage=post_train", *SMALL, f"data.path={small_samples / SAMPLES}")
    shown = command(*typed, "trainer.max_steps=1", cwd=tmp_path).stdout.splitlines()
    file = tmp_path / RUN / "run.log"
    log = file.read_text()
    assert not CONTROL.search(log)
    assert all(TIMESTAMP.match(line) for line in log.splitlines())
    assert [line.split(": ", 1)[1] for line in log.splitlines()] == shown
    refused = command(*typed, "seed=1", cwd=tmp_path)
    assert (refused.code, len(refused.stderr.splitlines())) == (2, 1)
    assert file.read_text() == log


def test_an_unexpected_error_keeps_its_traceback_on_the_console_and_in_the_log(
    tmp_path: Path,
) -> None:
    # a process of its own, since what Python prints at its end counts
    program = (
        "from cosmos_hydra import main\n"
        "def fail(*arguments): raise RuntimeError('out of \\u2603')\n"
        "main.run_stages = fail\n"
        "main.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "stage=preprocess"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "PYTHONUTF8": "0", "LC_ALL": "C.UTF-8"},
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("Traceback (most recent call last):\n") == 1
    assert done.stderr.endswith("RuntimeError: out of \u2603\n")
    assert done.stderr.count("RuntimeError: out of") == 1
    first, *rest = (tmp_path / RUN / "run.log").read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r"[\d ,:-]+ ERROR cosmos_hydra: unexpected error", first)
    assert rest[0] == "Traceback (most recent call last):"
    assert "in fail" in rest[-2] or "in fail" in rest[-3]
    assert rest[-1] == "RuntimeError: out of \u2603"


def test_without_a_terminal_there_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    caplog.set_level(logging.INFO)
    bar = Progress("train", 30, "steps", start=10)
    for loss in range(20):
        now_s[0] += 4.0
        bar.advance(loss=loss / 3)
    # every third step is the first after LINE_INTERVAL_S
    assert logs.LINE_INTERVAL_S == 10.0
    assert caplog.messages == [
        "train 13/30 steps, 4.0 s each, 68.0 s left, loss 0.6667",
        "train 16/30 steps, 4.0 s each, 56.0 s left, loss 1.667",
        "train 19/30 steps, 4.0 s each, 44.0 s left, loss 2.667",
        "train 22/30 steps, 4.0 s each, 32.0 s left, loss 3.667",
        "train 25/30 steps, 4.0 s each, 20.0 s left, loss 4.667",
        "train 28/30 steps, 4.0 s each, 8.0 s left, loss 5.667",
        "train 30/30 steps in 80.0 s, loss 6.333",
    ]
    caplog.clear()
    fast = Progress("look", 100000, "videos")
    for _ in range(350):
        now_s[0] += 0.03
        fast.advance()
    assert caplog.messages == ["look 334/100000 videos, 33.3/s, 50 min left"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.04, "0.0 s"), (99.9, "99.9 s"), (100, "2 min"), (3599, "1 h 0 min")),
        *((3601, "1 h 0 min"), (90061, "25 h 1 min")),
    ],
)
def test_time_spans_are_in_units_people_use(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def on_terminal(program: str, rows: int, columns: int) -> str:
    """Return what a Python program writes to a terminal of some size."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        close_fds=True,
    )
    os.close(theirs)
    content = b""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not read:
            break
        content += read
    assert process.wait() == 0
    os.close(ours)
    return content.decode()


def screen(text: str) -> list[str]:
    """Return the lines that are left on a terminal: a carriage return overwrites."""
    rows = []
    for line in text.replace("\r\n", "\n").split("\n"):
        row: list[str] = []
        for part in line.split("\r"):
            row[: len(part)] = part
        rows.append("".join(row).rstrip())
    return rows


BUSY = (
    "import logging, sys, time\n"
    "from cosmos_hydra.logs import logging_to, progress\n"
    "logger = logging.getLogger('busy')\n"
    "with logging_to(None, False):\n"
    "    with progress('train', 6, 'steps') as bar:\n"
    "        for step in range(6):\n"
    "            bar.advance(loss=0.5, note='x' * 60)\n"
    "            time.sleep(0.11)\n"
    "            if step % 2:\n"
    "                logger.info(f'message {step}')\n"
    "            if step == 3:\n"
    "                logger.warning('careful')\n"
    "    logger.info('done')\n"
)


@pytest.mark.parametrize("columns", [40, 200])
def test_on_a_terminal_the_bar_keeps_to_one_line_and_messages_stand_alone(columns: int) -> None:
    shown = on_terminal(BUSY, 24, columns)
    assert screen(shown) == ["message 1", "message 3", "warning: careful", "message 5", "done", ""]
    drawn = [part for part in re.split(r"[\r\n]", shown) if part.startswith("train:")]
    assert len(drawn) >= 5
    assert all(len(part) <= columns for part in drawn)
    # neither colours nor cursor movements
    assert "\x1b" not in shown


def test_on_a_terminal_without_a_size_there_are_lines() -> None:
    lines = screen(on_terminal(BUSY, 0, 0))
    assert re.fullmatch(r"train 6/6 steps in \d\.\d s, loss 0\.5 note x{60}", lines[3])
    assert [*lines[:3], *lines[4:]] == [
        "message 1",
        "message 3",
        "warning: careful",
        "message 5",
        "done",
        "",
    ]


def test_output_that_nobody_reads_any_more_stops_nothing(
    small_samples: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_samples / "samples", tmp_path / "samples")
    typed = ("stage=preprocess", *SMALL)
    command = shlex.join([sys.executable, "-m", "cosmos_hydra", *typed])
    done = subprocess.run(
        ["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    log = (tmp_path / RUN / "run.log").read_text()
    assert log.count("nothing more is shown: stdout cannot be written (Broken pipe)") == 1
    assert "next: cosmos-hydra stage=post_train " in log.splitlines()[-1]


def test_a_console_that_knows_no_such_letters_shows_their_numbers(tmp_path: Path) -> None:
    program = (
        "import logging, pathlib\n"
        "from cosmos_hydra.logs import logging_to\n"
        "with logging_to(pathlib.Path('run.log'), False):\n"
        "    logging.getLogger('x').info('caf\\u00e9 \\u673a')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"caf\\xe9 \\u673a\n"
    assert (tmp_path / "run.log").read_text(encoding="utf-8").endswith(": caf\u00e9 \u673a\n")
