"""Configs of somebody else that want to run code: one line refuses each, and nothing of it runs.

An audit hook records every import of the module `canary`, every call of its functions and every
command that this process could start.
"""

import json
import logging
import random
import shutil
import sys
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import SMALL, Command
from hostile_configs import CASES, PICKLED, STAGE, TARGET, Hostile
from small_runs import SAMPLES, small_config, train

from cosmos_hydra import guard
from cosmos_hydra.reading import SEAL, sealed
from cosmos_hydra.tracking.wandb import PUBLIC_HOSTS, Wandb
from cosmos_hydra.weights.torch_metadata import ALLOWED, DTYPES

CANARY = """
from pathlib import Path

def touch(*arguments, **named):
    Path("executed").touch()

touch()
"""
STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn"}
# the others are marked slow
SAMPLE = set(random.Random(3).sample(sorted(CASES), 12))
# classes that torch looks up in a checkpoint's `.metadata`, which we have looked at before
INERT = ALLOWED | {("torch", name) for name in DTYPES}
RUN = "runs/one"
MANIFEST = f"{RUN}/checkpoints/step_000002/manifest.json"
LOOKED_UP = "${oc.env:LOOKED_UP}"


class Recorder:
    """What ran while it was on."""

    def __init__(self) -> None:
        self.events: list[str] | None = None
        sys.addaudithook(self.hear)  # for the life of the process

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.events is None:
            return
        if event == "import":
            is_bad = str(arguments[0]).partition(".")[0] == "canary"
        elif event == "open":
            is_bad = str(arguments[0]).endswith("executed")
        elif event == "compile":
            is_bad = "canary" in f"{arguments[0]!r} {arguments[1]!r}"
        elif event == "exec":
            is_bad = "canary" in getattr(arguments[0], "co_filename", "")
        else:
            is_class = event == "pickle.find_class" and arguments not in INERT
            is_bad = event in STARTS or is_class
        if is_bad:
            self.events.append(f"{event} {arguments}")


RECORDER = Recorder()


@pytest.fixture
def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Lay out the canary and return what of it runs from now on."""
    (tmp_path / "canary.py").write_text(CANARY)
    monkeypatch.syspath_prepend(tmp_path)
    RECORDER.events = []
    yield RECORDER.events
    RECORDER.events = None
    sys.modules.pop("canary", None)


def lay_out(case: Hostile, folder: Path) -> list[str]:
    """Write the files of a case and return what is typed."""
    (folder / "evil.pickle").write_bytes(PICKLED)
    for name, text in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [word.replace("{folder}", str(folder)) for word in case.typed]


def paths_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "name",
    [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def test_one_line_refuses_a_config_and_nothing_of_it_runs(
    command: Command, tmp_path: Path, executed: list[str], name: str
) -> None:
    case = CASES[name]
    typed = lay_out(case, tmp_path)
    before = paths_below(tmp_path)
    refused = command(*typed, cwd=tmp_path)
    assert executed == []
    assert (refused.code, refused.stdout) == (2, "")
    [line] = refused.stderr.splitlines()
    assert line.startswith("cosmos-hydra: ")
    assert case.line in line
    left = paths_below(tmp_path) - before
    # Hydra notes a sweep before it composes its jobs
    assert all(path.startswith("runs") and "-m" in typed for path in left)


def test_the_canary_is_heard_when_nobody_guards(
    command: Command, tmp_path: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    guard.install()
    unguarded = guard.ConfigRepository.initialize_sources.__wrapped__
    monkeypatch.setattr(guard.ConfigRepository, "initialize_sources", unguarded)
    monkeypatch.setattr(guard, "install", lambda: None)
    with pytest.warns(UserWarning, match="canary"):
        command("hydra.searchpath=[pkg://canary]", "--cfg", "job", cwd=tmp_path)
    assert {event.split()[0] for event in executed} >= {"compile", "exec", "open"}
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "typed",
    [
        ("hydra.run.dir=elsewhere", "hydra.verbose=true", "+hydra.job.env_set.NCCL_DEBUG=INFO"),
        ("--config-dir", "ours", "experiment=good"),
        ("-m", "--config-dir", "ours", "hydra.sweep.dir=swept", "experiment=good,better"),
    ],
)
def test_what_is_not_hostile_still_runs(
    command: Command, small_samples: Path, tmp_path: Path, typed: tuple[str, ...]
) -> None:
    shutil.copytree(small_samples / "samples", tmp_path / "samples")
    for number, name in enumerate(("good", "better")):
        path = tmp_path / "ours/experiment" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"# @package _global_\ndefaults: [{{override /optim: adamw}}]\nseed: {number}"
        )
    done = command(*typed, STAGE, *SMALL, cwd=tmp_path)
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.count("are up to date") == (2 if "-m" in typed else 1)


def test_other_processes_of_a_run_can_be_silent(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_samples / "samples", tmp_path / "samples")
    silent = ("hydra/job_logging=disabled", "hydra/hydra_logging=disabled")
    level = logging.root.level
    try:
        done = command(*silent, "hydra.output_subdir=null", STAGE, *SMALL, cwd=tmp_path)
    finally:
        logging.root.setLevel(level)
        for logger in logging.root.manager.loggerDict.values():
            logger.disabled = False
    assert (done.code, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture(scope="module")
def trained(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with samples and the run `one` of two steps; do not write into it."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(small_samples / "samples", folder / "samples")
    train(small_config(folder, "trainer.max_steps=2", "name=one"), folder / RUN)
    return folder


def stored(folder: Path, changes: dict[str, Any]) -> None:
    """Change the config in the run's manifest, which then says that nothing has changed."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for key, value in changes.items():
        *parents, name = key.split(".")
        section = reduce(dict.__getitem__, parents, manifest["config"])
        section[name] = value
    del manifest[SEAL]
    (folder / MANIFEST).write_bytes(sealed(manifest))


GENERATE = ("stage=generate", f"checkpoint={RUN}", "generate.steps=1", "generate.prompt=A robot.")
RESUME = ("stage=post_train", *SMALL, "name=one", "trainer.max_steps=3")


@pytest.mark.parametrize(
    ("typed", "changes", "reason"),
    [
        (GENERATE, {"_target_": "canary.touch"}, "_target_: Key '_target_' not in 'Config'"),
        (GENERATE, {"model._target_": "canary.touch"}, "Key '_target_' not in 'ModelConfig'"),
        (GENERATE, {"data.views": [{"_target_": "canary.touch"}]}, "Key 'views' not in"),
        (GENERATE, {"model": [TARGET]}, "list is not a subclass of ModelConfig"),
        (RESUME, {"model._target_": "canary.touch"}, "Key '_target_' not in 'ModelConfig'"),
        (RESUME, {"model.num_layers": LOOKED_UP}, "model.num_layers: While dereferencing"),
        (RESUME, {"unknown": "1"}, "unknown: Key 'unknown' not in 'Config'"),
    ],
)
def test_a_config_stored_with_weights_is_refused(
    command: Command,
    trained: Path,
    tmp_path: Path,
    executed: list[str],
    typed: tuple[str, ...],
    changes: dict[str, Any],
    reason: str,
) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    stored(tmp_path, changes)
    refused = command(*typed, cwd=tmp_path)
    assert executed == []
    assert refused.code == 1
    assert f"{MANIFEST.rpartition('/')[0]} has no readable manifest.json (its" in refused.stdout
    assert reason in refused.stdout
    assert refused.stderr == (
        f"cosmos-hydra: run {RUN} has no intact checkpoint; use resume.mode=fresh\n"
    )


def test_nothing_is_looked_up_for_what_is_stored(
    command: Command,
    trained: Path,
    tmp_path: Path,
    executed: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("LOOKED_UP", "the value of a variable")
    resolved = "${run_directory:a,b,c,d,e,f}"
    made = '${oc.decode:"{_target_: canary.touch}"}'
    stored(tmp_path, {"name": resolved, "data.name": LOOKED_UP, "model.weights.path": made})
    facts = {"config": json.loads((tmp_path / MANIFEST).read_text())["config"]}
    facts["config"]["_target_"] = facts["_target_"] = "canary.touch"
    (tmp_path / RUN / "run.json").write_text(json.dumps(facts))
    (tmp_path / RUN / ".hydra").mkdir()
    (tmp_path / RUN / ".hydra/config.yaml").write_text("name: !!python/name:canary.touch\n")
    samples = tmp_path / SAMPLES / "manifest.json"
    manifest = {**json.loads(samples.read_text()), "_target_": "canary.touch"}
    samples.write_text(json.dumps(manifest))
    for typed in (GENERATE, RESUME, ("stage=report", f"checkpoint={RUN}")):
        done = command(*typed, cwd=tmp_path)
        assert (done.code, done.stderr) == (0, "")
    assert executed == []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if b"the value of a variable" in path.read_bytes()] == []


def test_a_settings_file_in_the_folder_does_not_choose_the_server_of_wandb(
    small_samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = "[default]\nbase_url = http://127.0.0.1:9\n"
    for folder in (tmp_path / "wandb", tmp_path / "run/wandb"):
        folder.mkdir(parents=True)
        (folder / "settings").write_text(settings)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    tracked = Wandb(small_config(small_samples, "log.wandb=offline"), tmp_path / "run")
    assert urlsplit(tracked.run.settings.base_url).hostname in PUBLIC_HOSTS
    tracked.close()
    tracked.wandb.teardown()
