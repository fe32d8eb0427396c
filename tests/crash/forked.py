"""Run the command line in forked children that have all imports behind them, and hurt them.

As a program this is a server: it imports everything, starts no thread, reads one order a line,
forks a child for it and answers with what the child left. As a module it is the tests' client.
"""

import atexit
import gc
import importlib
import itertools
import json
import os
import pkgutil
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

LIMIT_S = 120.0
DISK = "disk"
FILLER = "filler"
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod")
IMPORTS = (
    *("av", "decord", "diffusers.models.transformers.transformer_cosmos", "transformers"),
    *("matplotlib.backends.backend_agg", "PIL.PngImagePlugin", "cosmos_hydra.main"),
    *(f"cosmos_hydra.stages.{stage}" for stage in ("preprocess", "post_train", "generate")),
)


@dataclass(frozen=True)
class Hook:
    """What befalls a child when it is about to call a function for the n-th time.

    `place` is the function's dotted name, or DISK: whatever Python changes of files below `below`,
    and every fsync. With `within`, only calls during that function's `within_call`-th run count,
    and of its thread.
    """

    place: str
    call: int = 1
    within: str = ""
    within_call: int = 1
    below: str = ""
    # kill: at once; cut: in the write that makes a file longer than `size_bytes`
    # signal: all `numbers` at once; storm: of `numbers`, till the end
    # fail: with `errno`; limit: no file grows over `size_bytes`
    # fill: the disk of `below`, but for `size_bytes`; mute: stdout goes to a full disk
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


@cache
def _server() -> subprocess.Popen[str]:
    # a process of its own, since that of the tests has threads; it ends when its stdin closes
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    atexit.register(server.communicate)
    return server


def run(*arguments: str, cwd: Path, hooks: Sequence[Hook] = (), kill_s: float = LIMIT_S) -> Ended:
    """Run `cosmos-hydra` in a child and wait for it; SIGKILL it after `kill_s`.

    It may print as much as a pipe holds.
    """
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    order = [arguments, str(cwd), [asdict(hook) for hook in hooks], kill_s]
    server.stdin.write(json.dumps(order) + "\n")
    server.stdin.flush()
    return Ended(*json.loads(server.stdout.readline()))


def serve() -> None:
    """Fork a child for every order on stdin."""
    for line in sys.stdin:
        arguments, cwd, hooks, kill_s = json.loads(line)
        pipes = [os.pipe(), os.pipe()]
        began_s = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _begin_again(cwd, [writing for _, writing in pipes])
            for hook in hooks:
                install(Hook(**hook))
            _end(call(arguments))
        code = _wait(pid, began_s + kill_s)
        wall_s = time.monotonic() - began_s
        texts = []
        for reading, writing in pipes:
            os.close(writing)
            with os.fdopen(reading) as file:
                texts.append(file.read())
        sys.stdout.write(json.dumps([code, *texts, wall_s]) + "\n")
        sys.stdout.flush()


def _wait(pid: int, until_s: float) -> int:
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until_s:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.0005)


def _begin_again(cwd: str, outputs: list[int]) -> None:
    os.setpgid(0, 0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate([nothing, *outputs]):
        os.dup2(descriptor, number)
    os.chdir(cwd)


def call(arguments: Sequence[str]) -> int:
    """Run the console script and return its exit code, as the interpreter would give it."""
    from cosmos_hydra.__main__ import run as console_script

    sys.argv = ["cosmos-hydra", *arguments]
    try:
        console_script()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 (what reaches the interpreter)
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _end(code: int) -> None:
    # taking down all that was imported would take longer than most runs
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def install(hook: Hook) -> None:
    """Lie in wait, in this process."""
    calls = itertools.count(1)
    counting: set[int] = set()  # threads that are within

    def befall(path: str | None = None) -> None:
        is_counting = not hook.within or threading.get_ident() in counting
        if is_counting and next(calls) == hook.call:
            _act(hook, path)

    def within(real: Callable[..., Any], number: int, *arguments: Any, **named: Any) -> Any:
        if number == hook.within_call:
            counting.add(threading.get_ident())
        try:
            return real(*arguments, **named)
        finally:
            counting.discard(threading.get_ident())

    def called(real: Callable[..., Any], number: int, *arguments: Any, **named: Any) -> Any:
        befall()
        return real(*arguments, **named)

    def changed(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES and _is_change(event, arguments, hook.below):
            befall(os.fsdecode(arguments[0]))

    if hook.do == "cut":
        # Python ignores it, and only its main thread can change that
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if hook.within:
        _wrap(hook.within, within)
    if hook.place == DISK:
        sys.addaudithook(changed)
        _wrap("os.fsync", called)
    else:
        _wrap(hook.place, called)


def _wrap(place: str, around: Callable[..., Any]) -> None:
    """Have a function called through `around`, which gets it and the number of the call."""
    owner_name, _, name = place.rpartition(".")
    owner = pkgutil.resolve_name(owner_name)
    real, numbers = getattr(owner, name), itertools.count(1)
    setattr(owner, name, lambda *a, **named: around(real, next(numbers), *a, **named))


def _is_change(event: str, arguments: tuple[Any, ...], below: str) -> bool:
    if isinstance(arguments[0], int):
        return False
    path = Path.cwd() / os.fsdecode(arguments[0])
    if event == "open":
        is_one = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    else:
        is_one = path.exists() != (event == "os.mkdir")
    return is_one and str(path).startswith(below)


def _act(hook: Hook, path: str | None) -> None:
    if hook.do == "kill":
        os.killpg(0, signal.SIGKILL)
    elif hook.do == "signal":
        _send(os.getpid(), hook.numbers)
    elif hook.do == "storm":
        pid = os.getpid()
        if os.fork() == 0:
            while os.getppid() == pid:
                _send(pid, hook.numbers)
                time.sleep(0.001)
            os._exit(0)
    elif hook.do == "fail":
        raise OSError(hook.errno, os.strerror(hook.errno), path)
    elif hook.do == "mute":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    elif hook.do == "fill":
        fill(Path(hook.below), hook.size_bytes)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hook.size_bytes, hook.size_bytes))


def fill(disk: Path, free_bytes: int) -> None:
    """Take all but so much of a disk."""
    taken_bytes = shutil.disk_usage(disk).free - free_bytes
    (disk / FILLER).write_bytes(bytes(taken_bytes))


def _send(pid: int, numbers: Sequence[int]) -> None:
    # of this process they come together when it no longer blocks them
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number in numbers:
        os.kill(pid, number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


if __name__ == "__main__":
    for module in IMPORTS:
        importlib.import_module(module)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a thread would be lost in children"
    gc.freeze()
    serve()
