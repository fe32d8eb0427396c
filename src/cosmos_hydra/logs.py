"""Console lines and progress bars that do not disturb each other.

On a terminal a bar stays in place; elsewhere (a file, a batch job) it becomes a plain line
now and then, without control characters.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from cosmos_hydra.errors import CosmosError
from cosmos_hydra.redaction import redact

LINE_INTERVAL_S = 10.0
logger = logging.getLogger(__name__)


class ConsoleHandler(logging.Handler):
    """Print messages to stdout above any bar; warnings and errors carry their level."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        tqdm.write(redact(text), file=sys.stdout)
        sys.stdout.flush()


class FileFormatter(logging.Formatter):
    """Time stamps, levels and tracebacks, without secrets."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


@contextmanager
def logging_to(file: Path | None, verbose: bool | str | list[str]) -> Iterator[None]:
    """Show messages on the console and append them to a file; an unexpected error goes there too.

    `verbose` as hydra.verbose: true = debug messages of everything, or names of loggers.
    """
    root = logging.getLogger()
    handlers: list[logging.Handler] = [ConsoleHandler()]
    if file is not None:
        handlers.append(logging.FileHandler(file))
        handlers[-1].setFormatter(FileFormatter())
    before = root.level
    root.setLevel(logging.DEBUG if verbose is True else logging.INFO)
    names = [verbose] if isinstance(verbose, str) else verbose
    for name in names if isinstance(names, list) else []:
        logging.getLogger(name).setLevel(logging.DEBUG)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    except Exception as error:
        if file is not None and not isinstance(error, CosmosError):
            place = ("cosmos_hydra", logging.ERROR, __file__, 0)
            information = (type(error), error, error.__traceback__)
            handlers[-1].handle(logging.LogRecord(*place, "unexpected error", (), information))
        raise
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(before)


class Progress:
    """One stage's bar: position, rate, remaining time and a few named values."""

    def __init__(self, title: str, total: int, unit: str, start: int = 0) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, start
        self.start, self.started_s = start, time.monotonic()
        self.last_line_s = self.started_s
        self.values = ""
        self.bar = (
            tqdm(
                desc=title,
                total=total,
                unit=f" {unit}",
                initial=start,
                file=sys.stderr,
                leave=False,
            )
            if sys.stderr.isatty()
            else None
        )

    def advance(self, **values: float | str) -> None:
        """Count one more, showing the values."""
        self.done += 1
        if values:
            self.values = " ".join(f"{name} {_short(value)}" for name, value in values.items())
        if self.bar is not None:
            self.bar.set_postfix_str(self.values, refresh=False)
            self.bar.update()
        elif time.monotonic() - self.last_line_s > LINE_INTERVAL_S or self.done == self.total:
            self.last_line_s = time.monotonic()
            logger.info(self.line())

    def line(self) -> str:
        """Return the state as one line of text."""
        rate = (self.done - self.start) / max(time.monotonic() - self.started_s, 1e-9)
        left_s = (self.total - self.done) / max(rate, 1e-9)
        text = (
            f"{self.title} {self.done}/{self.total} {self.unit}, {rate:.2f}/s, {left_s:.0f} s left"
        )
        return f"{text}, {self.values}" if self.values else text


@contextmanager
def progress(title: str, total: int, unit: str, start: int = 0) -> Iterator[Progress]:
    """Yield a bar that is removed at the end."""
    shown = Progress(title, total, unit, start)
    try:
        yield shown
    finally:
        if shown.bar is not None:
            shown.bar.close()


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
