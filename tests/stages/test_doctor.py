"""`cosmos-hydra stage=doctor` as typed: the screen, the exit code, and no secret on it."""

import logging
import sys
import warnings
from pathlib import Path

import pytest
from conftest import Command
from huggingface_hub import constants

from cosmos_hydra.doctor.findings import Check, Level, examine, lines, ok
from cosmos_hydra.stages import doctor

CANARY = "hf_canary0123456789abcdef"


@pytest.fixture(autouse=True)
def _away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither accounts nor programs of whoever runs the tests."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")


def test_the_screen_has_one_line_a_check_and_a_verdict(command: Command, tmp_path: Path) -> None:
    screen = command("stage=doctor", cwd=tmp_path)
    *rows, verdict = screen.stdout.splitlines()
    found = [row for row in rows if not row.startswith(" ")]
    assert {row[:4].strip() for row in found} <= {"OK", "WARN"}
    assert [row[6:20].strip() for row in found] == [check.topic for check in doctor.CHECKS]
    assert verdict.endswith("; try: cosmos-hydra experiment=quickstart")
    assert (screen.code, screen.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_what_is_to_be_fixed_is_shown_with_what_to_type(command: Command, tmp_path: Path) -> None:
    # a place where nobody can write, not even to begin a run
    screen = command("stage=doctor", "paths.runs=/proc/none", "log.wandb=online", cwd=tmp_path)
    rows = screen.stdout.splitlines()
    at = rows.index("FIX   paths.runs    /proc/none cannot be written to")
    assert rows[at + 1] == f"{' ' * 20}-> paths.runs=FOLDER where you can write"
    assert rows[-1].startswith("2 to fix, ")
    assert screen.code == 1
    expected = "cosmos-hydra: stage=doctor found something to fix: paths.runs, wandb\n"
    assert screen.stderr == expected
    assert list(tmp_path.iterdir()) == []


def test_checks_that_wait_for_a_repair_are_counted(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    screen = command("stage=doctor", cwd=tmp_path)
    assert screen.stdout.splitlines()[-1].endswith("; 5 more to check after that")
    assert screen.stderr == "cosmos-hydra: stage=doctor found something to fix: torch\n"


def test_no_secret_is_ever_shown(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = f"http://user:{CANARY}@127.0.0.1:9"
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setattr(constants, "ENDPOINT", proxy)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {CANARY}\n")
    screen = command("stage=doctor", "hydra.verbose=true", cwd=tmp_path)
    assert "the Hub does not answer" in screen.stdout
    assert CANARY not in screen.stdout + screen.stderr


def test_a_check_that_fails_itself_is_a_warning_and_shows_more_when_asked(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: object) -> None:
        logging.getLogger("httpx").warning("what libraries say is not for this screen")
        warnings.warn("nor this", stacklevel=1)
        raise ZeroDivisionError("no such\nnumber")

    monkeypatch.setattr(
        doctor, "CHECKS", (Check("sums", fail), Check("rest", lambda _: ok("fine")))
    )
    screen = command("stage=doctor", cwd=tmp_path)
    again = "cosmos-hydra stage=doctor hydra.verbose=cosmos_hydra.doctor.findings"
    assert screen.stdout.splitlines() == [
        "WARN  sums          not checked, ZeroDivisionError: no such number",
        f"{' ' * 20}-> {again}",
        "OK    rest          fine",
        "nothing to fix, 1 warning; try: cosmos-hydra experiment=quickstart",
    ]
    assert (screen.code, screen.stderr) == (0, "")
    assert "Traceback" in command(*again.split()[1:], cwd=tmp_path).stdout


def test_levels_have_colours_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    [(topic, finding)] = examine([Check("sums", lambda _: ok("fine"))], None)
    assert finding.level is Level.OK
    assert lines(topic, finding) == ["OK    sums          fine"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert lines(topic, finding) == ["\033[32mOK  \033[0m  sums          fine"]
    monkeypatch.setenv("NO_COLOR", "1")
    assert lines(topic, finding) == ["OK    sums          fine"]
