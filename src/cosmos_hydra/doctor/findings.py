"""What a check finds, how checks are run, and how a finding is shown."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from cosmos_hydra.config import Config

TOPIC_WIDTH = 14
REASON_LENGTH = 120
logger = logging.getLogger(__name__)


class Level(Enum):
    """How bad it is; the value is its colour on a terminal."""

    OK = "32"
    WARN = "33"
    FIX = "31"


@dataclass(frozen=True)
class Finding:
    """What a check found and, unless all is well, what to type."""

    level: Level
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Check:
    """A check, and the topics that must be in order before it can say anything."""

    topic: str
    find: Callable[[Config], Finding]
    needs: tuple[str, ...] = ()


def ok(text: str) -> Finding:
    return Finding(Level.OK, text)


def warn(text: str, advice: str) -> Finding:
    return Finding(Level.WARN, text, advice)


def fix(text: str, advice: str) -> Finding:
    return Finding(Level.FIX, text, advice)


def reason(error: BaseException) -> str:
    """Return an error's text on one line, not too long."""
    return " ".join(str(error).split())[:REASON_LENGTH] or type(error).__name__


def examine(checks: Iterable[Check], config: Config) -> Iterator[tuple[str, Finding]]:
    """Yield the topic and the finding of each check; whatever a check raises becomes a warning.

    A check that needs what has to be fixed first is left out.
    """
    broken: set[str] = set()
    for check in checks:
        if not broken.isdisjoint(check.needs):
            continue
        finding = _find(check, config)
        if finding.level is Level.FIX:
            broken.add(check.topic)
        yield check.topic, finding


def _find(check: Check, config: Config) -> Finding:
    try:
        with _quiet():
            return check.find(config)
    except Exception as error:
        logger.debug(check.topic, exc_info=error)
        text = f"not checked, {type(error).__name__}: {reason(error)}"
        return warn(text, f"cosmos-hydra stage=doctor hydra.verbose={logger.name}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what libraries have to say off the screen."""
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def lines(topic: str, finding: Finding) -> list[str]:
    """Return a finding as aligned lines, in colour on a terminal unless NO_COLOR is set."""
    level = f"{finding.level.name:<4}"
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        level = f"\033[{finding.level.value}m{level}\033[0m"
    indent = " " * (len("WARN  ") + TOPIC_WIDTH)
    found = f"{level}  {topic:<{TOPIC_WIDTH}}{finding.text}"
    return [found, f"{indent}-> {finding.advice}"] if finding.advice else [found]
