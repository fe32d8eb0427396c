"""The batch script of a job: submitit makes it of the launcher's fields; every text is quoted."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

# Slurm takes them for patterns of names, escapes and ends of lines
UNFIT = re.compile(r"[%\\\x00-\x1f\x7f]")
OPTION = re.compile(r"[a-z][a-z0-9-]*")


def problems(fields: dict[str, Any], folder: Path) -> Iterator[str]:
    """Yield what a batch script cannot hold."""
    if UNFIT.search(str(folder)):
        yield (
            f"hydra.run.dir={str(folder)!a} has a character that Slurm takes for a pattern "
            f"(%, \\ or a line break); choose another"
        )
    for key, value in fields.items():
        parts = value if isinstance(value, list) else [value]
        if isinstance(value, dict):
            parts = [text for item in value.items() for text in item]
            for option in value:
                if not OPTION.fullmatch(str(option)):
                    yield f"hydra.launcher.additional has {option!a}, which is no option of sbatch"
        if key != "setup" and any(re.search(r"[\x00-\x1f\x7f]", str(part)) for part in parts):
            yield f"hydra.launcher.{key}={value!a} has a line break or the like; leave it out"
    at_least = {"nodes": 1, "gpus_per_node": 0, "time_min": 1, "array_parallelism": 1}
    at_least |= {"signal_lead_s": 0, "max_requeues": 0}
    for key, least in at_least.items():
        if fields[key] < least:
            yield f"hydra.launcher.{key}={fields[key]} is too small; at least {least}"
    ranks = str(fields["nproc_per_node"])
    if ranks != "auto" and not (ranks.isdecimal() and int(ranks)):
        yield f"hydra.launcher.nproc_per_node={ranks} is no number of ranks; auto, or at least 1"
    lead_min = fields["signal_lead_s"] / 60
    if lead_min >= fields["time_min"]:
        yield (
            f"hydra.launcher.signal_lead_s={fields['signal_lead_s']} is not below "
            f"hydra.launcher.time_min={fields['time_min']} minutes; lower it"
        )


def ranks_per_node(fields: dict[str, Any]) -> str:
    """Return how many ranks a node has."""
    if fields["nproc_per_node"] == "auto":
        return str(fields["gpus_per_node"] or 1)
    return str(fields["nproc_per_node"])


def parameters(fields: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """Return the fields in submitit's words."""
    srun_args = list(fields["srun_args"])
    if fields["cpus_per_task"]:  # srun does not take it from sbatch
        srun_args.append(f"--cpus-per-task={fields['cpus_per_task']}")
    if fields["container_image"]:
        mounts = [f"{Path.cwd()}:{Path.cwd()}", f"{folder}:{folder}", *fields["container_mounts"]]
        srun_args += [
            f"--container-image={fields['container_image']}",
            f"--container-mounts={','.join(mounts)}",
            f"--container-workdir={Path.cwd()}",
        ]
    additional = {
        # modules of the working directory must not go first there
        "chdir": str(folder),
        "requeue": True,
        "reservation": fields["reservation"],
        **fields["additional"],
    }
    given = {
        "job_name": re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII)[:64],
        "nodes": fields["nodes"],
        "ntasks_per_node": 1,
        "gpus_per_node": fields["gpus_per_node"] or None,
        "cpus_per_task": fields["cpus_per_task"],
        "mem": f"{round(fields['mem_gb'] * 1024)}M" if fields["mem_gb"] else None,
        "time": fields["time_min"],
        "signal_delay_s": fields["signal_lead_s"],
        "array_parallelism": fields["array_parallelism"],
        "setup": list(fields["setup"]) or None,
        "srun_args": srun_args,
        "stderr_to_stdout": True,
        "additional_parameters": {key: v for key, v in additional.items() if v is not None},
    }
    for key in ("partition", "account", "qos", "constraint", "exclude"):
        given[key] = fields[key]
    return {key: value for key, value in given.items() if value is not None}


def executor(fields: dict[str, Any], name: str, folder: Path) -> SlurmExecutor:
    """Return what submits jobs, with its files in a folder."""
    python = shlex.join(fields["python"]) or None
    found = SlurmExecutor(folder=folder, python=python)
    found._internal_update_parameters(**parameters(fields, name, folder))
    return found


def script(fields: dict[str, Any], name: str, folder: Path, num_jobs: int) -> str:
    """Return the batch script of so many jobs."""
    given = parameters(fields, name, folder)
    python = shlex.join(fields["python"] or [sys.executable])
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    count = num_jobs if num_jobs > 1 else None
    return _make_sbatch_string(command=command, folder=folder, map_count=count, **given)
