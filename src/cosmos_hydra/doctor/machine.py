"""What the machine offers beside a GPU: memory, disk and Slurm."""

import shutil
import subprocess
import tempfile
from operator import attrgetter
from pathlib import Path

from cosmos_hydra.config import Config, ModelConfig
from cosmos_hydra.doctor.findings import Finding, fix, ok, reason, warn

MEMORY_INFO = Path("/proc/meminfo")
# the limit of a container or batch job; version 2 and 1 of control groups
MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
PROGRAM_GB = 2.0  # Python with its libraries and a few clips
LOW_DISK_GB = 1.0
SINFO_TIMEOUT_S = 5


def memory(config: Config) -> Finding:
    """Find whether the weights fit into memory, in float32 as they are built."""
    available_gb = _available_gb()
    weights_gb = 4 * num_parameters(config.model) / 1e9
    if available_gb >= PROGRAM_GB + weights_gb:
        return ok(f"{available_gb:.1f} GB available")
    text = (
        f"{available_gb:.1f} GB available; weights of model={config.model.name} take "
        f"{weights_gb:.1f} and the program {PROGRAM_GB:.0f}"
    )
    return warn(text, "model=tiny, or a machine with more memory")


def folder(config: Config, key: str) -> Finding:
    """Find whether there is room below a configured folder and files can be made there."""
    path = Path(attrgetter(key)(config)).expanduser()
    needed_gb = 2 * checkpoint_gb(config.model) if key == "paths.runs" else 0.0
    finding = room(path, needed_gb, f"{key}=FOLDER on a disk with more room")
    return finding or fix(f"{path} cannot be written to", f"{key}=FOLDER where you can write")


def hub_cache(config: Config) -> Finding:
    """Find the same for the cache that downloads from the Hub go into."""
    from huggingface_hub import constants

    path, advice = Path(constants.HF_HUB_CACHE), "export HF_HOME=FOLDER where you can write"
    return room(path, 0.0, advice) or warn(f"{path} cannot be written to", advice)


def room(path: Path, needed_gb: float, advice: str) -> Finding | None:
    """Return how much room a folder has, None if no file can be made in it or its parent."""
    try:
        existing = next(place for place in (path, *path.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=existing):
            free_gb = shutil.disk_usage(existing).free / 1e9
    except OSError:
        return None
    if free_gb < needed_gb:
        text = f"{free_gb:.1f} GB free in {path}, but two checkpoints need {needed_gb:.1f}"
        return fix(text, advice)
    if free_gb < LOW_DISK_GB:
        return warn(f"only {free_gb:.1f} GB free in {path}", advice)
    return ok(f"{free_gb:.0f} GB free in {path}")


def slurm(config: Config) -> Finding:
    """Find whether this is a Slurm machine and its controller answers."""
    if shutil.which("sbatch") is None:
        return ok("not a Slurm machine")
    try:
        reply = subprocess.run(
            ["sinfo", "--noheader", "--format=%R %D"],
            capture_output=True,
            text=True,
            timeout=SINFO_TIMEOUT_S,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        why = error.stderr.strip().splitlines()[-1:] or [f"exit code {error.returncode}"]
        return warn(f"sbatch is here, but sinfo fails ({why[0]})", "sinfo")
    except (OSError, subprocess.TimeoutExpired) as error:
        return warn(f"sbatch is here, but sinfo does not answer ({reason(error)})", "sinfo")
    rows = [line.rsplit(maxsplit=1) for line in reply.stdout.splitlines() if line.strip()]
    partitions = ", ".join(f"{name} ({nodes} nodes)" for name, nodes in rows)
    return ok(f"sinfo answers: {partitions or 'no partitions'}")


def num_parameters(model: ModelConfig) -> float:
    """Return about how many parameters the transformer has: its blocks, without embeddings."""
    dim = model.num_heads * model.head_dim
    attention = 6 * dim**2 + 2 * dim * model.text_dim  # to itself, and to the text
    mlp = 2 * model.mlp_ratio * dim**2
    modulation = 3 * (1 + 3) * dim * model.adaln_lora_dim
    return model.num_layers * (attention + mlp + modulation)


def checkpoint_gb(model: ModelConfig) -> float:
    """Return the size of a checkpoint: weights and two moments in float32."""
    return 12 * num_parameters(model) / 1e9


def _available_gb() -> float:
    rows = dict(line.split(":", 1) for line in MEMORY_INFO.read_text().splitlines())
    available_bytes = 1024 * int(rows["MemAvailable"].split()[0])
    limits = [limit.read_text().strip() for limit in MEMORY_LIMITS if limit.is_file()]
    # the word `max` stands for none
    return min([available_bytes, *(int(limit) for limit in limits if limit.isdigit())]) / 1e9
