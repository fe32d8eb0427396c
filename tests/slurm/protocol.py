"""What ranks do in the tests of Slurm jobs: they import torch alone. Also the app that starts them.

`python protocol.py do=sum -m hydra/launcher=cosmos_slurm ...`
"""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

STEP_S = 0.3


@dataclass
class Config:
    do: str = "sum"
    lr: float = 1.0
    steps: int = 20


ConfigStore.instance().store(name="protocol", node=Config)


def run(config: DictConfig) -> float | None:
    """Do what the config says, on every rank."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    folder = Path(HydraConfig.get().runtime.output_dir)
    if config.do == "sum":
        value = torch.tensor(rank + config.lr)
        dist.all_reduce(value)
        place = {key: os.environ[key] for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
        node = os.environ["SLURM_NODEID"]
        (folder / f"rank_{rank}.json").write_text(json.dumps({**place, "node": node}))
        return float(value)
    if config.do == "raise":
        if rank == 3:
            raise ValueError("a bad sample")
        dist.barrier()
    if config.do == "kill":
        if config.lr == 2 and rank == 0:
            os.kill(os.getppid(), signal.SIGSTOP)
            os.kill(int(os.environ["SLURM_TASK_PID"]), signal.SIGKILL)
        return config.lr
    return train(config, folder)


def train(config: DictConfig, folder: Path) -> float:
    """Train one weight in steps of a fixed time; save and leave with 75 when a signal asks."""
    import torch
    import torch.distributed as dist

    asked = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: asked.append(number))
    saved = folder / "saved.pt"
    step, weight = torch.load(saved) if saved.is_file() else (0, torch.zeros(()))
    rank = dist.get_rank()
    if rank == 0:
        print(f"from step {step}", flush=True)
    for now in range(step + 1, config.steps + 1):
        time.sleep(STEP_S)
        gradient = torch.tensor(float(rank + now))
        dist.all_reduce(gradient)
        weight = weight * 0.9 + gradient * config.lr
        is_asked = torch.tensor(len(asked))
        dist.all_reduce(is_asked)
        if rank == 0:
            (folder / "step").write_text(str(now))
        if is_asked:
            if rank == 0:
                torch.save((now, weight), saved)
                print(f"saved step {now}", flush=True)
            dist.barrier()
            sys.exit(75)
    if rank == 0:
        print(f"ended at {float(weight)}", flush=True)
    return float(weight)


if __name__ == "__main__":
    # under its own name, as ranks import it
    import protocol

    here = str(Path(__file__).parent)
    hydra.main(version_base="1.3", config_path=here, config_name="protocol")(protocol.run)()
