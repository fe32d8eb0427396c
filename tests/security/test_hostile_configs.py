"""Configs of others that want to run code: each is refused in one line, and nothing of it runs.

A module `canary` lies on the import path. Its import, its functions, and every command that this
process could start are recorded by an audit hook.
"""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Command

STAGE = "stage=preprocess"
CANARY = """
from pathlib import Path

def touch(*arguments, **named):
    Path("executed").touch()

touch()
"""
STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn"}
CALLED = "is refused: nothing in a config is called; leave it out"
CALLBACKS = "hydra.callbacks is refused: callbacks would run code; leave it out"
LOGGING = "is refused: logging configs can call code; set hydra.verbose=true"
SECTION = "is refused: it is no section; leave it out"
VARIABLE = "is refused: it could load code or redirect requests; set it in the shell"
FROM_TEXT = "is refused: it makes config out of text; write the value itself"
IMPORTED = "is refused: it would be imported; use --config-dir with a folder"

# what is typed, and what the one line must say
TYPED = {
    "+_target_=os.system": f"_target_ {CALLED}",
    "+model._target_=os.system": f"model._target_ {CALLED}",
    "++data.synthetic._partial_=true": f"data.synthetic._partial_ {CALLED}",
    "+trainer._args_=[touch executed]": f"trainer._args_ {CALLED}",
    "+data.views=[[{_target_: canary.touch}]]": f"data.views[0][0]._target_ {CALLED}",
    "hydra.launcher._target_=canary.touch": f"hydra.launcher._target_ {CALLED}",
    "hydra.launcher._target_={_target_: canary.touch}": f"hydra.launcher._target_ {CALLED}",
    "+hydra.launcher.nested={_target_: functools.partial}": (
        f"hydra.launcher.nested._target_ {CALLED}"
    ),
    "hydra.launcher=${data}": f"hydra.launcher {SECTION}",
    "hydra.launcher=null": f"hydra.launcher {SECTION}",
    "hydra.launcher='${oc.decode:\"{_target_: canary.touch}\"}'": f"hydra.launcher {SECTION}",
    "hydra.sweeper._target_=hydra.utils.get_method": f"hydra.sweeper._target_ {CALLED}",
    "hydra.sweeper.params={_target_: canary.touch}": f"hydra.sweeper.params._target_ {CALLED}",
    "-m hydra.sweeper.params='${oc.decode:\"{_target_: canary.touch}\"}'": FROM_TEXT,
    "-m hydra.sweeper.max_batch_size='${oc.create:{_target_: canary.touch}}'": FROM_TEXT,
    "+hydra.callbacks.evil._target_=canary.touch": f"hydra.callbacks.evil._target_ {CALLED}",
    "+hydra.callbacks.evil.class=canary.touch": CALLBACKS,
    "+hydra.job_logging.handlers.one.class=canary.touch": f"hydra.job_logging {LOGGING}",
    "hydra.job_logging.version='ext://canary.touch'": f"hydra.job_logging {LOGGING}",
    "hydra.job_logging.root={level: 'ext://canary.touch'}": f"hydra.job_logging {LOGGING}",
    "hydra.job_logging.root='ext://canary'": f"hydra.job_logging {LOGGING}",
    "hydra.hydra_logging.disable_existing_loggers='cfg://root'": f"hydra.hydra_logging {LOGGING}",
    "hydra.hydra_logging=${data}": f"hydra.hydra_logging {SECTION}",
    "hydra/job_logging=default": f"hydra.job_logging {LOGGING}",
    "+hydra.job.env_set.LD_PRELOAD=canary.so": f"hydra.job.env_set.LD_PRELOAD {VARIABLE}",
    "+hydra.job.env_set.PYTHONSTARTUP=canary.py": f"hydra.job.env_set.PYTHONSTARTUP {VARIABLE}",
    "+hydra.job.env_set.CUDA_INJECTION64_PATH=a": (
        f"hydra.job.env_set.CUDA_INJECTION64_PATH {VARIABLE}"
    ),
    "+hydra.job.env_set.NCCL_NET_PLUGIN=a.so": f"hydra.job.env_set.NCCL_NET_PLUGIN {VARIABLE}",
    "+hydra.job.env_set.HF_ENDPOINT=http://a": f"hydra.job.env_set.HF_ENDPOINT {VARIABLE}",
    "hydra.job.env_copy=[PATH]": f"hydra.job.env_set.PATH {VARIABLE}",
    "hydra.job=${data}": "",
    "hydra.searchpath=[pkg://canary]": f"hydra.searchpath=pkg://canary {IMPORTED}",
    "--config-path pkg://canary": f"--config-path=pkg://canary {IMPORTED}",
    "--experimental-rerun evil.pickle": "--experimental-rerun is refused: it unpickles a file",
    "--experimental=evil.pickle": "--experimental-rerun is refused: it unpickles a file",
    "name='${oc.decode:\"{_target_: canary.touch}\"}'": FROM_TEXT,
    "name='${oc.create:{_target_: canary.touch}}'": FROM_TEXT,
    "name='${eval:\"__import__(1)\"}'": "unsupported interpolation type eval",
    "name='${run_directory:a}'": "name",
    "name='${hydra:job_logging}'": "name",
    "-m +data._target_=canary.touch,os.system": f"data._target_ {CALLED}",
    "stage=post_train model.weights.path=$(touch executed)": "x",
    "stage=post_train model.weights.path=`touch executed`": "x",
    "stage=post_train model.weights.path=;touch executed": "x",
    "data=folder data.source=|touch executed": "data.source=|touch executed is no folder",
}


def one_experiment(content: str) -> dict[str, str]:
    return {"theirs/experiment/evil.yaml": f"# @package _global_\n{content}\n"}


CHOSEN = ("--config-dir", "theirs", "experiment=evil", STAGE)
TARGET = "{_target_: canary.touch}"
# files, what is typed, and what the one line must say
FILES = {
    "experiment": (one_experiment(f"model: {TARGET}"), CHOSEN, f"model._target_ {CALLED}"),
    "added experiment": (
        one_experiment(f"model: {TARGET}"),
        ("--config-dir", "theirs", "+experiment@theirs=evil", STAGE),
        CALLED,
    ),
    "launcher in an experiment": (
        one_experiment(f"hydra: {{launcher: {TARGET}}}"),
        CHOSEN,
        f"hydra.launcher._target_ {CALLED}",
    ),
    "launcher by interpolation": (
        one_experiment("evil: {x: 1}\nhydra: {launcher: '${evil}'}"),
        CHOSEN,
        f"hydra.launcher {SECTION}",
    ),
    "hydra by interpolation": (
        one_experiment("evil: {x: 1}\nhydra: '${evil}'"),
        CHOSEN,
        "",
    ),
    "handler with a factory": (
        one_experiment("hydra: {job_logging: {handlers: {one: {(): canary.touch}}}}"),
        CHOSEN,
        f"hydra.job_logging {LOGGING}",
    ),
    "filter with a factory": (
        one_experiment("hydra: {hydra_logging: {filters: {one: {(): canary.touch}}}}"),
        CHOSEN,
        f"hydra.hydra_logging {LOGGING}",
    ),
    "logging in the defaults list": (
        {
            **one_experiment("defaults: [{override /hydra/job_logging: evil}]"),
            "theirs/hydra/job_logging/evil.yaml": (
                "version: 1\nroot: {handlers: [one]}\nhandlers: {one: {class: canary.touch}}\n"
            ),
        },
        CHOSEN,
        f"hydra.job_logging {LOGGING}",
    ),
    "launcher option": (
        {"theirs/hydra/launcher/evil.yaml": "_target_: canary.touch\n"},
        ("--config-dir", "theirs", STAGE, "hydra/launcher=evil"),
        f"hydra.launcher._target_ {CALLED}",
    ),
    "sweeper option": (
        {"theirs/hydra/sweeper/evil.yaml": f"_target_: canary.touch\n"},
        ("--config-dir", "theirs", "-m", STAGE, "hydra/sweeper=evil"),
        f"hydra.sweeper._target_ {CALLED}",
    ),
    "callbacks option": (
        {"theirs/hydra/callbacks/evil.yaml": f"one: {TARGET}\n"},
        ("--config-dir", "theirs", STAGE, "hydra/callbacks=evil"),
        f"hydra.callbacks.one._target_ {CALLED}",
    ),
    "env option": (
        {"theirs/hydra/env/evil.yaml": "# @package hydra.job\nenv_set: {PYTHONPATH: theirs}\n"},
        ("--config-dir", "theirs", STAGE, "hydra/env=evil"),
        f"hydra.job.env_set.PYTHONPATH {VARIABLE}",
    ),
    "config of hydra": (
        {"theirs/hydra/config.yaml": f"launcher: {TARGET}\n"},
        ("--config-dir", "theirs", STAGE),
        "",
    ),
    "one evil option of a sweep": (
        {
            **one_experiment(f"model: {TARGET}"),
            "theirs/experiment/good.yaml": "# @package _global_\nseed: 1\n",
        },
        ("--config-dir", "theirs", "-m", STAGE, "experiment=good,evil"),
        f"model._target_ {CALLED}",
    ),
    "python tag: apply": (
        one_experiment("name: !!python/object/apply:os.system ['touch executed']"),
        CHOSEN,
        "",
    ),
    "python tag: name": (one_experiment("name: !!python/name:canary.touch"), CHOSEN, ""),
    "python tag: module": (one_experiment("name: !!python/module:canary"), CHOSEN, ""),
    "python tag: new": (
        one_experiment("name: !!python/object/new:canary.touch []"),
        CHOSEN,
        "",
    ),
    "config name of their own": (
        {"theirs/evil.yaml": f"defaults: [config]\nmodel: {TARGET}\n"},
        ("--config-dir", "theirs", "--config-name", "evil", STAGE),
        f"model._target_ {CALLED}",
    ),
    "config path of their own": (
        {"theirs/config.yaml": f"hydra: {{callbacks: {{one: {TARGET}}}}}\n"},
        ("--config-path", "{folder}/theirs", STAGE),
        "",
    ),
    "search path of their own": (
        {"theirs/evil.yaml": "hydra: {searchpath: ['pkg://canary']}\n"},
        ("--config-path", "{folder}/theirs", "--config-name", "evil", STAGE),
        f"hydra.searchpath=pkg://canary {IMPORTED}",
    ),
}


class Recorder:
    """What happened while it was on."""

    def __init__(self) -> None:
        self.is_on = False
        self.events: list[str] = []
        sys.addaudithook(self.hear)  # for the life of the process

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if event == "import":
            is_bad = str(arguments[0]).partition(".")[0] == "canary"
        elif event == "open":
            is_bad = str(arguments[0]).endswith(("canary.py", "executed"))
        elif event == "compile":
            is_bad = "canary" in str(arguments[0]) + str(arguments[1])
        elif event == "exec":
            is_bad = "canary" in str(getattr(arguments[0], "co_filename", ""))
        else:
            is_bad = event in STARTS or event == "pickle.find_class"
        if is_bad:
            self.events.append(f"{event} {arguments}")


RECORDER = Recorder()


@pytest.fixture
def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Lay out the canary and return what of it has run, as it happens."""
    (tmp_path / "canary.py").write_text(CANARY)
    monkeypatch.syspath_prepend(tmp_path)
    RECORDER.events = []
    RECORDER.is_on = True
    yield RECORDER.events
    RECORDER.is_on = False
    sys.modules.pop("canary", None)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch executed",)


@pytest.mark.parametrize("typed", TYPED)
def test_typed(command: Command, tmp_path: Path, executed: list[str], typed: str) -> None:
    (tmp_path / "evil.pickle").write_bytes(pickle.dumps(Evil()))
    words = typed.split(" ") if typed.startswith("-") else [typed]
    if typed.startswith("stage=") or typed.startswith("data=") :
        a, _, b = typed.partition(" "); words=[a,b]
    if typed.startswith("-m"): words=["-m", typed[3:]]
    if typed.startswith("data=") or not typed.startswith("stage="): words.append(STAGE)
    try:
        r = command(*words, cwd=tmp_path)
    except BaseException as error:
        print("CRASH", typed, repr(error)[:300]); r=None
    with open("/tmp/hc/out.txt","a") as f:
        f.write(f"## {typed}\n   want {TYPED[typed]}\n   {r and (r.code, r.stdout[-300:], r.stderr)} {executed} {sorted(p.name for p in tmp_path.iterdir())}\n")

@pytest.mark.parametrize("name", FILES)
def test_files(command: Command, tmp_path: Path, executed: list[str], name: str) -> None:
    files, typed, named = FILES[name]
    for k,v in files.items():
        p=tmp_path/k; p.parent.mkdir(parents=True,exist_ok=True); p.write_text(v)
    try:
        r = command(*[t.format(folder=tmp_path) for t in typed], cwd=tmp_path)
    except BaseException as error:
        r = None; print(repr(error)); 
        import traceback; e=traceback.format_exc()[-600:]
    with open("/tmp/hc/out.txt","a") as f:
        f.write(f"## {name}\n   want {named}\n   {r and (r.code, r.stdout[-300:], r.stderr)} {executed} {sorted(p.name for p in tmp_path.iterdir())}{'' if r else e}\n")
