"""What a config of somebody else could hold to run code, and the line that refuses it.

`canary` is a module on the import path; importing it or calling canary.touch counts as running.
"""

import os
import pickle
from dataclasses import dataclass, field

STAGE = "stage=preprocess"
CHOSEN = ("--config-dir", "theirs", STAGE, "experiment=evil")
TARGET = "{_target_: canary.touch}"
FACTORY = "{version: 1, handlers: {one: {(): canary.touch}}, root: {handlers: [one]}}"
TEXT = '"{_target_: canary.touch}"'
CALLED = "is refused: nothing in a config is called; leave it out"
CALLBACKS = "hydra.callbacks is refused: callbacks would run code; leave it out"
LOGGING = "is refused: logging configs can call code; set hydra.verbose=true"
SECTION = "is refused: it is no section; leave it out"
VARIABLE = "is refused: it could load code or redirect requests; set it in the shell"
DECODED = "oc.decode makes config out of text; write the value itself"
CREATED = "oc.create makes config out of text; write the value itself"
IMPORTED = "is refused: it would be imported; use --config-dir with a folder"
RERUN = "--experimental-rerun is refused: it unpickles a file; repeat the command"
NO_TAG = "could not determine a constructor for the tag 'tag:yaml.org,2002:python"


class Evil:
    """Starts a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.system, ("touch executed",)


@dataclass(frozen=True)
class Hostile:
    """Files of the attacker, what is typed, and a part of the line it must end in."""

    line: str
    typed: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)


def typed(override: str, line: str) -> Hostile:
    return Hostile(line, (STAGE, override))


def swept(override: str, line: str) -> Hostile:
    return Hostile(line, ("-m", STAGE, override))


def experiment(content: str, line: str, **options: str) -> Hostile:
    """Return an experiment in a folder of theirs; `options` are files of Hydra's own groups."""
    files = {"theirs/experiment/evil.yaml": f"# @package _global_\n{content}\n"}
    files |= {f"theirs/hydra/{group}/evil.yaml": text for group, text in options.items()}
    return Hostile(line, CHOSEN, files)


def option(group: str, content: str, line: str) -> Hostile:
    """Return an option of one of Hydra's own groups."""
    chosen = ("--config-dir", "theirs", STAGE, f"hydra/{group}=evil")
    return Hostile(line, chosen, {f"theirs/hydra/{group}/evil.yaml": content})


def variable(name: str) -> Hostile:
    line = f"hydra.job.env_set.{name} {VARIABLE}"
    return typed(f"+hydra.job.env_set.{name}=canary", line)


ON_THE_COMMAND_LINE = [
    typed("+_target_=os.system", f"_target_ {CALLED}"),
    typed("+model._target_=builtins.eval", f"model._target_ {CALLED}"),
    typed("++data.synthetic._partial_=true", f"data.synthetic._partial_ {CALLED}"),
    typed("+trainer._args_=[touch executed]", f"trainer._args_ {CALLED}"),
    typed("+data.views=[[{_target_: canary.touch}]]", f"data.views[0][0]._target_ {CALLED}"),
    typed("hydra.launcher._target_=canary.touch", f"hydra.launcher._target_ {CALLED}"),
    typed(
        "+hydra.launcher.one={_target_: functools.partial}", f"hydra.launcher.one._target_ {CALLED}"
    ),
    typed("hydra.launcher=${data}", f"hydra.launcher {SECTION}"),
    typed("hydra.launcher=null", f"hydra.launcher {SECTION}"),
    typed(f"hydra.launcher='${{oc.decode:{TEXT}}}'", f"hydra.launcher is refused: {DECODED}"),
    swept(
        f"hydra.sweeper.params='${{oc.decode:{TEXT}}}'",
        f"hydra.sweeper.params is refused: {DECODED}",
    ),
    typed("hydra.sweeper._target_=hydra.utils.get_method", f"hydra.sweeper._target_ {CALLED}"),
    typed(f"hydra.sweeper.params={TARGET}", "hydra.sweeper.params._target_ is not a config key"),
    typed("+hydra.callbacks.one._target_=canary.touch", f"hydra.callbacks.one._target_ {CALLED}"),
    typed("+hydra.callbacks.one.class=canary.touch", CALLBACKS),
    typed("+hydra.job_logging.handlers.one.class=canary.touch", f"hydra.job_logging {LOGGING}"),
    typed("hydra.job_logging.version='ext://canary.touch'", f"hydra.job_logging {LOGGING}"),
    typed("hydra.job_logging.root={level: 'ext://canary'}", f"hydra.job_logging {LOGGING}"),
    typed("hydra.job_logging.root='ext://canary'", f"hydra.job_logging {LOGGING}"),
    typed(
        "hydra.hydra_logging.disable_existing_loggers='cfg://root'",
        f"hydra.hydra_logging {LOGGING}",
    ),
    typed("hydra.hydra_logging=${data}", f"hydra.hydra_logging {SECTION}"),
    typed("hydra/job_logging=default", f"hydra.job_logging {LOGGING}"),
    *map(variable, ("LD_PRELOAD", "PYTHONSTARTUP", "PATH", "BASH_ENV", "CUDA_INJECTION64_PATH")),
    *map(variable, ("NCCL_NET_PLUGIN", "IMAGEIO_FFMPEG_EXE", "CXX", "HF_ENDPOINT", "HTTPS_PROXY")),
    typed("hydra.job.env_copy=[PATH]", f"hydra.job.env_set.PATH {VARIABLE}"),
    typed("hydra.searchpath=[pkg://canary]", f"hydra.searchpath=pkg://canary {IMPORTED}"),
    Hostile(f"--config-path=pkg://canary {IMPORTED}", ("--config-path", "pkg://canary", STAGE)),
    Hostile(RERUN, ("--experimental-rerun", "evil.pickle")),
    Hostile(RERUN, ("--exp=evil.pickle", STAGE)),
    typed(f"name='${{oc.decode:{TEXT}}}'", f"name is refused: {DECODED}"),
    typed("name='${oc.create:{_target_: canary.touch}}'", f"name is refused: {CREATED}"),
    typed("name='${eval:\"__import__(canary)\"}'", "unsupported interpolation type eval"),
    typed("name='${run_directory:canary}'", "run_directory() missing 5 required positional"),
    typed("name='${hydra:job_logging}'", "name='${hydra:job_logging}' has the wrong type"),
    swept("+data._target_=canary.touch,os.system", f"data._target_ {CALLED}"),
    swept("+hydra.launcher._target_=canary.touch,os.system", "Sweeping over Hydra's configuration"),
    typed("data.kind=folder;touch executed", "data.kind=folder;touch executed is not a valid"),
    typed("hydra.job.env_set=${model}", f"hydra.job.env_set {SECTION}"),
]
IN_FILES = [
    experiment(f"model: {TARGET}", "Key '_target_' not in 'ModelConfig'"),
    experiment(f"evil: {TARGET}", "Key 'evil' not in 'Config'"),
    experiment(f"hydra: {{launcher: {TARGET}}}", f"hydra.launcher._target_ {CALLED}"),
    experiment(f"hydra: {{launcher: [{TARGET}]}}", "list is not a subclass of BasicLauncherConf"),
    experiment("hydra: {launcher: '${model}'}", "str is not a subclass of BasicLauncherConf"),
    experiment("hydra: '${model}'", "hydra"),
    experiment(f"hydra: {{job_logging: {FACTORY}}}", f"hydra.job_logging {LOGGING}"),
    experiment(
        "hydra: {hydra_logging: {filters: {one: {(): canary.touch}}}}",
        f"hydra.hydra_logging {LOGGING}",
    ),
    experiment(
        "data: {prompt: decode}\nname: '${oc.${data.prompt}:\"{a: 1}\"}'",
        f"hydra.run.dir does not resolve; {DECODED}",
    ),
    experiment(
        "defaults: [{override /hydra/launcher: evil}]",
        f"hydra.launcher._target_ {CALLED}",
        launcher="_target_: canary.touch",
    ),
    experiment(
        "defaults: [{override /hydra/callbacks: evil}]",
        f"hydra.callbacks.one._target_ {CALLED}",
        callbacks=f"one: {TARGET}",
    ),
    option("launcher", "_target_: canary.touch", f"hydra.launcher._target_ {CALLED}"),
    option("sweeper", "_target_: canary.touch", f"hydra.sweeper._target_ {CALLED}"),
    option("callbacks", f"one: {TARGET}", f"hydra.callbacks.one._target_ {CALLED}"),
    option("job_logging", FACTORY, f"hydra.job_logging {LOGGING}"),
    option("hydra_logging", FACTORY, f"hydra.hydra_logging {LOGGING}"),
    option(
        "env",
        "# @package hydra.job\nenv_set: {PYTHONPATH: theirs}",
        f"hydra.job.env_set.PYTHONPATH {VARIABLE}",
    ),
    Hostile(
        "hydra",
        ("--config-dir", "theirs", STAGE),
        {"theirs/hydra/config.yaml": f"launcher: {TARGET}\n"},
    ),
    Hostile(
        "Key '_target_' not in 'ModelConfig'",
        ("--config-dir", "theirs", "-m", STAGE, "experiment=good,evil"),
        {
            "theirs/experiment/good.yaml": "# @package _global_\nseed: 1\n",
            "theirs/experiment/evil.yaml": f"# @package _global_\nmodel: {TARGET}\n",
        },
    ),
    experiment(
        "name: !!python/object/apply:os.system ['touch executed']", f"{NO_TAG}/object/apply"
    ),
    experiment("name: !!python/object/new:canary.touch []", f"{NO_TAG}/object/new"),
    experiment("name: !!python/name:canary.touch", f"{NO_TAG}/name"),
    experiment("name: !!python/module:canary", f"{NO_TAG}/module"),
    Hostile(
        f"hydra.callbacks.one._target_ {CALLED}",
        ("--config-dir", "theirs", "--config-name", "evil", STAGE),
        {
            "theirs/evil.yaml": (
                f"defaults: [config, _self_]\nhydra: {{callbacks: {{one: {TARGET}}}}}"
            )
        },
    ),
    Hostile(
        f"hydra.callbacks.one._target_ {CALLED}",
        ("--config-path", "{folder}/theirs", f"+{STAGE}"),
        {"theirs/config.yaml": f"hydra: {{callbacks: {{one: {TARGET}}}}}"},
    ),
    Hostile(
        f"hydra.searchpath=pkg://canary {IMPORTED}",
        ("--config-path", "{folder}/theirs", "--config-name", "evil", f"+{STAGE}"),
        {"theirs/evil.yaml": "hydra: {searchpath: ['pkg://canary']}"},
    ),
]
CASES = {
    f"{number} {case.line}": case
    for number, case in enumerate([*ON_THE_COMMAND_LINE, *IN_FILES], start=1)
}
PICKLED = pickle.dumps(Evil())
