"""The GPU: whether torch can use it, and if not, whose fault that is.

Without a GPU the toy model runs all the same, so its absence is no fault by itself.
"""

import os
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmos_hydra.config import Config
from cosmos_hydra.doctor.findings import Finding, fix, ok, reason, warn
from cosmos_hydra.doctor.packages import install_torch

TIMEOUT_S = 5
DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")
PCI_FOLDER = Path("/sys/bus/pci/devices")
# CUDA major version: oldest NVIDIA driver for it (CUDA release notes), a build of torch with it
CUDA = {13: (580, "cu130"), 12: (525, "cu128")}
OLD_GPU_BUILD = "cu126"  # has kernels for GPUs that the newer builds left behind
NO_GPU = "none, runs use the CPU"


@dataclass(frozen=True)
class Driver:
    """What nvidia-smi tells."""

    version: str
    gpus: list[str]

    @property
    def build(self) -> str | None:
        """Return the newest build of torch that this driver runs."""
        major = int(self.version.partition(".")[0])
        return next((build for oldest, build in CUDA.values() if major >= oldest), None)


def gpu(config: Config) -> Finding:
    """Find the GPUs and let each multiply; or why torch has none."""
    import torch

    if config.engine.device == "cpu":
        return ok("not used, engine.device=cpu")
    driver = _driver()
    if not (torch.version.cuda or torch.version.hip):
        return _cpu_build(config, torch.__version__, driver)
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return _unseen(config, driver, reason(error))
    return _seen(config, torch, driver)


def _cpu_build(config: Config, version: str, driver: Driver | None) -> Finding:
    if driver or _has_entries(DRIVER_FOLDER):
        name = _names(driver.gpus) if driver else "an NVIDIA GPU"
        text = f"{name} is not used, since torch {version} is built for the CPU"
        oldest, newest_build = CUDA[13]
        install = install_torch((driver and driver.build) or newest_build)
        is_old = driver is not None and driver.build is None
        return fix(text, f"{_update(oldest)}, then: {install}" if is_old else install)
    if _asked(config):
        return fix(f"engine.device={config.engine.device} but there is none", "engine.device=auto")
    return ok(NO_GPU)


def _unseen(config: Config, driver: Driver | None, why: str) -> Finding:
    import torch

    worse = fix if _asked(config) else warn
    if "too old" in why:
        oldest, _ = CUDA[int(str(torch.version.cuda).partition(".")[0])]
        version = f"driver {driver.version}" if driver else "the NVIDIA driver"
        built = f"torch {torch.__version__}, built for CUDA {torch.version.cuda}"
        text = f"{version} is too old for {built}"
        build = driver.build if driver else None
        return fix(text, _update(oldest) + (f", or: {install_torch(build)}" if build else ""))
    if "no NVIDIA driver" in why:
        advice = "install the driver (https://www.nvidia.com/drivers), in a container: --gpus all"
        if _has_nvidia_card() or _has_entries(DRIVER_FOLDER):
            return fix("this machine has an NVIDIA GPU, but its driver is missing here", advice)
        if _has_entries(PCI_FOLDER) and not _asked(config):
            return ok(f"{NO_GPU}: neither an NVIDIA GPU nor a driver")
        return worse("no NVIDIA driver found, so there is no GPU", advice)
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        is_empty = not os.environ["CUDA_VISIBLE_DEVICES"].strip()
        what = "is empty" if is_empty else "names no GPU of this machine"
        text = f"CUDA_VISIBLE_DEVICES {what}, so torch sees none"
        return worse(text, "unset CUDA_VISIBLE_DEVICES")
    return worse(f"torch sees none ({why})", "nvidia-smi (on Slurm ask for one: srun --gpus=1)")


def _seen(config: Config, torch: Any, driver: Driver | None) -> Finding:
    count = torch.cuda.device_count()
    index = torch.device(config.engine.device).index if _asked(config) else None
    if index is not None and index >= count:
        return fix(
            f"engine.device=cuda:{index} but the last is cuda:{count - 1}", "engine.device=auto"
        )
    free_gb = []
    for number in range(count):
        try:
            ones = torch.ones(64, 64, device=f"cuda:{number}")
            assert (ones @ ones).sum().item() == 64**3
        except RuntimeError as error:
            name = torch.cuda.get_device_name(number)
            text = f"{name} does not compute with torch {torch.__version__} ({reason(error)})"
            return fix(text, install_torch(OLD_GPU_BUILD))
        free_gb.append(torch.cuda.mem_get_info(number)[0] / 1e9)
    total_gb = torch.cuda.get_device_properties(0).total_memory / 1e9
    names = _names([torch.cuda.get_device_name(number) for number in range(count)])
    version = f", driver {driver.version}" if driver else ""
    return ok(f"{names}, {min(free_gb):.0f} of {total_gb:.0f} GB free{version}")


def _update(oldest: int) -> str:
    return f"update the NVIDIA driver to {oldest} or newer"


def _asked(config: Config) -> bool:
    """Return whether the config insists on a GPU."""
    return config.engine.device.startswith("cuda")


def _driver() -> Driver | None:
    """Return what nvidia-smi tells, None when it is not there or has nothing to tell."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        reply = subprocess.run(query, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [line.split(", ", 1) for line in reply.stdout.splitlines() if ", " in line]
    return Driver(rows[0][0], [name for _, name in rows]) if rows else None


def _names(gpus: list[str]) -> str:
    """Return names of GPUs, equal ones counted."""
    counted = Counter(gpus).items()
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counted)


def _has_nvidia_card() -> bool:
    """Return whether a display or compute card of NVIDIA is plugged in."""
    return any(
        (card / "vendor").read_text().strip() == "0x10de"
        and (card / "class").read_text().startswith("0x03")
        for card in PCI_FOLDER.glob("*")
    )


def _has_entries(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
