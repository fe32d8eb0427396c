"""Run many commands, each as `cosmos-hydra` does, in one process: importing torch takes seconds.

python many_commands.py commands.json   # [[failure or null, [words]], ...]; prints exit codes
"""

import errno
import json
import logging
import os
import sys
import threading
import warnings
from pathlib import Path
from typing import NoReturn

from cosmos_hydra import main as program
from cosmos_hydra.stages import preprocess

STAGE = preprocess.run


def told() -> str:
    """Return a message that repeats secrets, as of a client that shows its request."""
    return f"401 for Bearer {os.environ['HF_TOKEN']} through {os.environ['HTTPS_PROXY']}"


def crash(*_: object) -> NoReturn:
    try:
        raise ValueError(told())
    except ValueError as error:
        raise RuntimeError(f"no access: {told()}") from error


def crash_in_a_thread(*_: object) -> None:
    thread = threading.Thread(target=crash)
    thread.start()
    thread.join()


def interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt(told())


def fill_the_disk(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, f"no space; {told()}", told())


def warn(*_: object) -> None:
    warnings.warn(told(), stacklevel=1)
    third_party = logging.getLogger("third_party")
    third_party.propagate = False
    third_party.addHandler(logging.StreamHandler())
    third_party.error(told())
    logging.getLogger("another").warning(told(), exc_info=ValueError(told()))
    sys.stdout.writelines([told(), "\n"])


FAILURES = {"crash": crash, "thread": crash_in_a_thread, "ctrl-c": interrupt, "disk": fill_the_disk}
FAILURES |= {"warn": warn}


def run(words: list[str]) -> int:
    """Return the exit code of one command; an unexpected error is printed as Python would."""
    sys.argv = ["cosmos-hydra", *words]
    try:
        program.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception:  # noqa: BLE001 (what Python does at the end of a process)
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    codes = []
    for failure, words in json.loads(Path(sys.argv[1]).read_text()):
        preprocess.run = FAILURES.get(failure, STAGE)
        codes.append(run(words))
    sys.stdout.write(f"{json.dumps(codes)}\n")
