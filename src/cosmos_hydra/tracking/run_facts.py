"""run.json: what a run is, written when it begins to train; the report reads it."""

from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

import cosmos_hydra
from cosmos_hydra import config as schema
from cosmos_hydra import files, place
from cosmos_hydra.config import Config
from cosmos_hydra.data.clips import HELD_OUT, TRAIN
from cosmos_hydra.data.store import SampleStore
from cosmos_hydra.engines.torch.kernels import effective_attention
from cosmos_hydra.engines.torch.precision import effective_precision
from cosmos_hydra.job import Job
from cosmos_hydra.overrides import groups

FILE = "run.json"
# groups without keys of their own
ABOUT_JOBS = ("experiment", "launch", "sweep")


def write_run_facts(
    config: Config, job: Job, store: SampleStore, device: torch.device, num_parameters: int
) -> None:
    """Write run.json into the run directory."""
    is_cuda = device.type == "cuda"
    precision = effective_precision(config.parallel.precision, device)
    facts = {
        "command": job.command(),
        "overrides": list(job.overrides),
        "config": schema.to_dict(config),
        "defaults": _defaults(job),
        "data": {
            "path": config.data.path,
            "content_hash": store.content_hash,
            "counts": store.manifest.get("counts"),
            "train": len(store.splits[TRAIN]),
            "held_out": len(store.splits[HELD_OUT]),
            "captions": len(set(store.captions.values())),
        },
        "device": {
            "type": device.type,
            "name": torch.cuda.get_device_name(device) if is_cuda else "CPU",
            "threads": None if is_cuda else torch.get_num_threads(),
        },
        "precision": precision.name,
        "attention": effective_attention(config, device).name,
        "ranks": place.world_size(),
        "parameters": num_parameters,
        "versions": {"cosmos_hydra": cosmos_hydra.__version__, "torch": torch.__version__},
    }
    files.write_json(job.directory / FILE, facts)


def _defaults(job: Job) -> dict[str, Any] | None:
    """Return the config of the same options without experiment or overrides; None outside Hydra."""
    if job.composed is None:
        return None
    chosen = {group: job.choices[group] for group in groups() if group in job.choices}
    overrides = [f"{group}={option}" for group, option in chosen.items() if group not in ABOUT_JOBS]
    stage = job.composed.stage.name
    loader = GlobalHydra.instance().config_loader()
    composed = loader.load_configuration("config", [f"stage={stage}", *overrides], RunMode.RUN)
    ours = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
    values = OmegaConf.to_container(ours, resolve=True, throw_on_missing=False, enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}
