"""Console lines and progress bars that do not disturb each other.

On a terminal a bar stays in place; elsewhere (a file, a batch job) it becomes a plain line
now and then, without control characters.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from cosmos_hydra.errors import CosmosError
from cosmos_hydra.redaction import redact

LINE_INTERVAL_S = 10.0
STDOUT = 1
QUIET = (
    # where torchao is installed, these warn on import of parts that nothing here uses
    *("torchao", "diffusers.quantizers", "torch.utils._pytree"),
    # these log every address, with the signature that opens it
    *("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "urllib3"),
)
logger = logging.getLogger(__name__)


class ConsoleHandler(logging.Handler):
    """Print messages to stdout above any bar; warnings and errors carry their level."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        try:
            encoding = sys.stdout.encoding or "utf-8"
            tqdm.write(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stdout)
            sys.stdout.flush()
        except OSError as error:
            # the reader of a pipe has gone, or the disk under a redirected output is full
            os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
            logger.warning(f"nothing more is shown: stdout cannot be written ({error.strerror})")


class LogFile(logging.FileHandler):
    """run.log; the run goes on without it where the disk does not take it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (of logging)
        logging.getLogger().removeHandler(self)
        logger.warning(f"{self.baseFilename} ends here: {sys.exc_info()[1]}")

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class FileFormatter(logging.Formatter):
    """Time stamps, levels and tracebacks, without secrets."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


@contextmanager
def logging_to(
    file: Path | None, verbose: bool | str | list[str], is_speaking: bool = True
) -> Iterator[None]:
    """Show messages on the console and append them to a file; an unexpected error goes there too.

    `verbose` as hydra.verbose: true = debug messages of everything, or names of loggers. A rank
    that does not speak shows errors alone.
    """
    root = logging.getLogger()
    console = ConsoleHandler()
    console.setLevel(logging.NOTSET if is_speaking else logging.ERROR)
    handlers: list[logging.Handler] = [console]
    if file is not None:
        handlers.append(LogFile(file, encoding="utf-8", delay=True))
        handlers[-1].setFormatter(FileFormatter())
    before = root.level
    root.setLevel(logging.DEBUG if verbose is True else logging.INFO)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
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
                dynamic_ncols=True,
            )
            if _is_terminal(sys.stderr)
            else None
        )

    def advance(self, count: int = 1, /, **values: float | str) -> None:
        """Count one more, or some, showing the values."""
        self.done += count
        if values:
            self.values = " ".join(f"{name} {_short(value)}" for name, value in values.items())
        if self.bar is not None:
            self.bar.set_postfix_str(self.values, refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.last_line_s > LINE_INTERVAL_S or self.done == self.total:
            self.last_line_s = time.monotonic()
            logger.info(self.line())

    def line(self) -> str:
        """Return the state as one line of text."""
        spent_s = max(time.monotonic() - self.started_s, 1e-9)
        step_s = spent_s / max(self.done - self.start, 1)
        text = f"{self.title} {self.done}/{self.total} {self.unit}"
        if self.done == self.total:
            text += f" in {duration(spent_s)}"
        else:
            pace = f"{1 / step_s:.1f}/s" if step_s < 1 else f"{step_s:.1f} s each"
            text += f", {pace}, {duration(step_s * (self.total - self.done))} left"
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


def _is_terminal(stream: TextIO) -> bool:
    """Return whether a bar can be drawn; tqdm shows nothing on a terminal without a size."""
    return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0


def duration(seconds: float) -> str:
    """Return a time span in words: 4.2 s, 12 min, 3 h 5 min."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
