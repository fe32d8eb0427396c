"""Run the command line in forked children that have all imports behind them, and hurt them.

As a program this is the server: it imports everything, starts no thread, reads one order a line,
forks a child for it and answers with what the child left. As a module it is the tests' client.
"""

import importlib
import itertools
import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LIMIT_S = 120.0
PIPE_BYTES = 1 << 20  # outputs are read when the child has ended
DISK = "disk"
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod")
IMPORTS = (
    *("decord", "diffusers", "transformers", "matplotlib.backends.backend_agg"),
    *(f"cosmos_hydra.stages.{stage}" for stage in ("preprocess", "post_train", "generate")),
)


@dataclass(frozen=True)
class Hook:
    """What befalls the child right before a function is called for the n-th time.

    `place` is `module:function`, or DISK: any change of files below `below`. With `within`, calls
    count only while that function runs for the `within_call`-th time.
    """

    place: str
    call: int = 1
    within: str = ""
    within_call: int = 1
    below: str = ""
    # kill; signal (all of `numbers`); fail (with `errno`); limit (files end at `size_bytes`)
    do: str = "kill"
    numbers: Sequence[int] = ()
    errno: int = 0
    size_bytes: int = 0


@dataclass(frozen=True)
class Ended:
    """What a child left; a negative code is the signal that ended it."""

    code: int
    stdout: str
    stderr: str
    wall_s: float


class Forked:
    """The client: the server is a process of its own, since that of the tests has threads."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(
        self,
        *arguments: str,
        cwd: Path,
        hook: Hook | None = None,
        signals: Sequence[tuple[float, int]] = (),
    ) -> Ended:
        """Run `cosmos-hydra` in a child; `signals` are pairs of seconds after the fork and number.

        A child that takes longer than LIMIT_S is killed.
        """
        order = {
            "arguments": arguments,
            "cwd": str(cwd),
            "hook": asdict(hook) if hook else None,
            "signals": signals,
        }
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        return Ended(**json.loads(self.server.stdout.readline()))

    def close(self) -> None:
        """End the server."""
        self.server.communicate()


def serve() -> bool:
    """Fork a child for every order; return true in a child, false when there are no more."""
    for line in sys.stdin:
        order = json.loads(line)
        pipes = [os.pipe(), os.pipe()]
        began_s = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _become(order, [writing for _, writing in pipes])
            return True
        code = _wait(pid, order["signals"], began_s)
        wall_s = time.monotonic() - began_s
        texts = []
        for reading, writing in pipes:
            os.close(writing)
            with os.fdopen(reading) as file:
                texts.append(file.read())
        sys.stdout.write(json.dumps(asdict(Ended(code, *texts, wall_s))) + "\n")
        sys.stdout.flush()
    return False


def _wait(pid: int, signals: Sequence[tuple[float, int]], began_s: float) -> int:
    due = [*sorted(signals), (LIMIT_S, signal.SIGKILL)]
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() - began_s >= due[0][0]:
            os.kill(pid, due.pop(0)[1])
        time.sleep(0.0005)


def _become(order: dict[str, Any], outputs: list[int]) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate([nothing, *outputs]):
        os.dup2(descriptor, number)
    os.set_inheritable(0, True)
    os.chdir(order["cwd"])
    sys.argv = ["cosmos-hydra", *order["arguments"]]
    if order["hook"]:
        _install(Hook(**order["hook"]))


def _install(hook: Hook) -> None:
    calls = itertools.count(1)
    is_counting = not hook.within

    def befall() -> None:
        if is_counting and next(calls) == hook.call:
            _act(hook)

    if hook.within:

        def during(real: Callable[..., Any], number: int, *arguments: Any, **named: Any) -> Any:
            nonlocal is_counting
            is_counting = number == hook.within_call
            try:
                return real(*arguments, **named)
            finally:
                is_counting = False

        _wrap(hook.within, during)

    if hook.place == DISK:

        def changed(event: str, arguments: tuple[Any, ...]) -> None:
            if event in CHANGES and _is_change(event, arguments, hook.below):
                befall()

        sys.addaudithook(changed)
    else:

        def called(real: Callable[..., Any], number: int, *arguments: Any, **named: Any) -> Any:
            befall()
            return real(*arguments, **named)

        _wrap(hook.place, called)


def _wrap(place: str, around: Callable[..., Any]) -> None:
    """Have a function called through `around`, with itself and the number of the call."""
    owner_name, _, name = place.replace(":", ".").rpartition(".")
    owner = pkgutil.resolve_name(owner_name)
    real, numbers = getattr(owner, name), itertools.count(1)
    setattr(owner, name, lambda *a, **named: around(real, next(numbers), *a, **named))


def _is_change(event: str, arguments: tuple[Any, ...], below: str) -> bool:
    path = arguments[0]
    if isinstance(path, int) or not os.path.abspath(os.fsdecode(path)).startswith(below):
        return False
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    return event != "open" or bool(arguments[2] & writing)


def _act(hook: Hook) -> None:
    if hook.do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif hook.do == "signal":
        for number in hook.numbers:
            signal.raise_signal(number)
    elif hook.do == "fail":
        raise OSError(hook.errno, os.strerror(hook.errno))
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hook.size_bytes, hook.size_bytes))


if __name__ == "__main__":
    for module in IMPORTS:
        importlib.import_module(module)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a thread would be lost in children"
    if serve():
        from cosmos_hydra.__main__ import run

        run()
