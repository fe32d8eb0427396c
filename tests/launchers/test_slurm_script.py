"""The batch script: what launch.dry_run shows, golden; whatever a name or path holds is quoted."""

import random
import shutil
import string
import subprocess
from pathlib import Path

import pytest
from conftest import Command

from cosmos_hydra.place import adopt_slurm, first_host

TRAIN = ("stage=post_train", "launch=slurm", "launch.dry_run=true")


def script(command: Command, folder: Path, *typed: str) -> str:
    shown = command(*TRAIN, *typed, cwd=folder)
    assert (shown.code, shown.stderr) == (0, "")
    return shown.stdout


def test_the_script_has_the_fields_and_nothing_is_submitted(
    command: Command, tmp_path: Path
) -> None:
    fields = ("nodes=2", "gpus_per_node=8", "mem_gb=100", "partition=long", "time_min=90")
    fields += ("cpus_per_task=32", "setup=[module load cuda]")
    more = "+hydra.launcher.additional.mail-type=END"
    shown = script(command, tmp_path, *(f"hydra.launcher.{field}" for field in fields), more)
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in shown.splitlines()
        if line.startswith("#SBATCH")
    )
    folder = tmp_path / "runs/tiny-synthetic/logs/slurm"
    assert options == {
        "chdir": str(folder),
        "cpus-per-task": "32",
        "gpus-per-node": "8",
        "job-name": "cosmos-hydra-tiny-synthetic",
        "mail-type": "END",
        "mem": "102400M",
        "nodes": "2",
        "ntasks-per-node": "1",
        "open-mode": "append",
        "output": f"{folder}/%j_0_log.out",
        "partition": "long",
        "requeue": "",
        "signal": "USR2@120",
        "time": "90",
        "wckey": "submitit",
    }
    assert "\nmodule load cuda\n" in shown
    assert "--kill-on-bad-exit=1 --cpus-per-task=32 " in shown
    assert "_worker" in shown.splitlines()[-1]
    assert not folder.exists()


def test_a_container_is_an_argument_of_srun(command: Command, tmp_path: Path) -> None:
    shown = script(
        command,
        tmp_path,
        "hydra.launcher.container_image=/images/a b.sqsh",
        "hydra.launcher.container_mounts=[/samples:/samples]",
        "hydra.launcher.python=[python3]",
    )
    assert "'--container-image=/images/a b.sqsh' " in shown
    assert f"--container-mounts={tmp_path}:{tmp_path}," in shown
    assert ",/samples:/samples " in shown
    assert " python3 -u -m submitit.core._submit " in shown


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("nodes=0", "nodes=0 is too small; at least 1"),
        ("nproc_per_node=x", "nproc_per_node=x is no number of ranks; auto, or at least 1"),
        (
            "signal_lead_s=20000",
            "signal_lead_s=20000 is not below hydra.launcher.time_min=240 minutes; lower it",
        ),
        ("partition='a\nb'", r"partition='a\nb' has a line break or the like; leave it out"),
    ],
)
def test_fields_that_cannot_be_are_refused(
    command: Command, tmp_path: Path, field: str, said: str
) -> None:
    refused = command(*TRAIN, f"hydra.launcher.{field}", cwd=tmp_path)
    assert (refused.code, refused.stderr) == (2, f"cosmos-hydra: hydra.launcher.{said}\n")


def test_a_file_of_configs_does_not_say_what_runs_on_the_cluster(
    command: Command, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs/launch"
    theirs.mkdir(parents=True)
    (theirs / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [slurm, _self_]\n"
        "hydra: {launcher: {partition: long, setup: [touch canary]}}\n"
    )
    refused = command(
        *("stage=post_train", "launch=mine", "launch.dry_run=true", "--config-dir", "theirs"),
        cwd=tmp_path,
    )
    assert refused.code == 2
    assert refused.stderr == (
        "cosmos-hydra: hydra.launcher.setup is refused: a file of configs would say what runs "
        "there; type it instead\n"
    )


def test_without_slurm_the_other_launcher_is_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    refused = command("stage=post_train", "launch=slurm", cwd=tmp_path)
    assert refused.code == 2
    assert refused.stderr == (
        "cosmos-hydra: launch=slurm needs sbatch on PATH, none found; use launch=torchrun on a "
        "single host\n"
    )


def hostile(number: int) -> str:
    """Return a text that would touch `canary` or break out, were it not quoted."""
    rng = random.Random(number)
    pieces = ["$(touch canary)", "`touch canary`", "; touch canary;", "' touch canary '", '"', "'"]
    pieces += ["&& touch canary", "| touch canary", "> canary", "$HOME", "*", "~", "#", " ", "!"]
    pieces += [
        "$((1))",
        "${IFS}touch${IFS}canary",
        "(",
        ")",
        "{",
        "}",
        "[",
        "]",
        "&",
        "é",
        "=",
        ",",
    ]
    pieces += list(string.ascii_letters[:8])
    return "".join(rng.choices(pieces, k=rng.randint(1, 8))).strip("/") or "a"


def run_quoted(number: int, folder: Path) -> None:
    """Put a text into every field and path of a script and run that with a srun that prints."""
    from hydra_plugins.cosmos_launchers import _sbatch
    from hydra_plugins.cosmos_launchers.config import SlurmLauncherConf

    text = hostile(number)
    fields = {**vars(SlurmLauncherConf()), "setup": [], "additional": {"comment": text}}
    fields |= dict.fromkeys(("partition", "account", "qos", "constraint", "exclude"), text)
    fields |= {"srun_args": [f"--comment={text}"], "python": ["echo", text]}
    fields |= {"container_image": text, "container_mounts": [], "reservation": text}
    place = folder / text.replace("/", "_") / "logs"
    assert list(_sbatch.problems(fields, place)) == []
    written = _sbatch.script(fields, text, place, 2)
    # the options are comments for the shell, one line each
    options = written.partition("\n\n# command")[0]
    assert all(line.startswith("#") for line in options.splitlines() if line)
    stand_in = folder / "srun"
    stand_in.write_text('#!/bin/bash\nprintf "%s\\0" "$@" >"$PRINTED"\n')
    stand_in.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", written],
        cwd=folder,
        env={"PATH": f"{folder}:/usr/bin:/bin", "PRINTED": str(folder / "printed")},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b""), text
    arguments = (folder / "printed").read_bytes().decode().split("\0")
    assert f"--comment={text}" in arguments
    assert f"--container-image={text}" in arguments
    assert arguments[-7:-1] == ["echo", text, "-u", "-m", "submitit.core._submit", str(place)]
    assert sorted(path.name for path in folder.iterdir()) == ["printed", "srun"], text


@pytest.mark.parametrize("number", range(10))
def test_ten_hostile_texts_run_nothing(number: int, tmp_path: Path) -> None:
    run_quoted(number, tmp_path)


@pytest.mark.slow
def test_two_hundred_hostile_texts_run_nothing(tmp_path: Path) -> None:
    for number in range(200):
        folder = tmp_path / str(number)
        folder.mkdir()
        run_quoted(number, folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n[1-2]", "n1"), ("r[1-2]n[07-12],login", "r1n07"), ("a,b[1-2]", "a")],
)
def test_the_first_of_a_list_of_nodes(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_tasks_of_srun_are_ranks_and_a_batch_script_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    job = {"SLURM_JOB_ID": "123456", "SLURM_NTASKS": "4", "SLURM_PROCID": "3"}
    step = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_LOCALID": "1"}
    import os

    for name, value in job.items():
        monkeypatch.setenv(name, value)
    adopt_slurm()
    assert "RANK" not in os.environ
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    adopt_slurm()
    assert [os.environ[name] for name in names] == ["3", "1", "4", "n1", "23456"]
