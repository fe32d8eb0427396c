"""Run directories and what lies in them; found by looking, never by a pointer."""

import os
from pathlib import Path

MANIFEST = "manifest.json"


def run_directory(
    runs: str, name: str, stage: object, checkpoint: str | None, out: str | None, mode: object
) -> str:
    """Return where a single job writes; Hydra calls it as a resolver while composing.

    `generate` from a given checkpoint writes into its output folder, so that the config of the
    run it reads stays as it is; `report` writes into that run; `export` into its own folder alone,
    `download` below HF_HOME; `inspect`, `plan` and `doctor` nowhere, as they must work where
    nothing can be written. With `resume.mode=fresh` the first free numbered name is taken.
    """
    stage_name, mode_name = (getattr(item, "name", item) for item in (stage, mode))
    if stage_name == "generate" and (checkpoint or out):
        given = Path(str(out or checkpoint)).expanduser()
        return str(given if out else videos_folder(given))
    if stage_name in ("inspect", "plan", "doctor", "download", "export"):
        return "."
    if stage_name == "report" and checkpoint:
        given = Path(checkpoint).expanduser()
        return str(run_of(given) or given)
    # without `..`: Hydra makes the folder before a name that leaves the runs is refused
    directory = Path(os.path.normpath(Path(runs).expanduser() / name))
    if mode_name == "fresh" and stage_name in ("post_train", "pipeline"):
        number = 2
        fresh = directory
        while steps(fresh):
            fresh = directory.with_name(f"{directory.name}-{number}")
            number += 1
        return str(fresh)
    return str(directory)


def videos_folder(checkpoint: Path) -> Path:
    """Return where videos of a checkpoint go: below its run, or beside a foreign folder."""
    run = run_of(checkpoint)
    return run / "videos" if run else checkpoint.with_name(f"{checkpoint.name}-videos")


def run_of(checkpoint: Path) -> Path | None:
    """Return the run directory that a run or one of its steps belongs to, or None."""
    if steps(checkpoint):
        return checkpoint
    is_step = checkpoint.parent.name == "checkpoints" and (checkpoint / MANIFEST).is_file()
    return checkpoint.parent.parent if is_step else None


def step_folder(run: Path, step: int) -> Path:
    """Return the folder of one checkpoint."""
    return run / "checkpoints" / f"step_{step:06d}"


def steps(run: Path) -> list[int]:
    """Return the steps of the run's complete checkpoints, ascending."""
    names = {path.parent.name for path in (run / "checkpoints").glob(f"step_*/{MANIFEST}")}
    numbers = (name.removeprefix("step_") for name in names)
    found = {int(number) for number in numbers if number.isdecimal()}
    return sorted(step for step in found if step_folder(run, step).name in names)
