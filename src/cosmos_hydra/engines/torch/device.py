"""Where tensors live."""

import re

import torch

from cosmos_hydra.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """Return the device that engine.device names; `auto` takes CUDA when there is one.

    Raises: ConfigError for another kind of device, or one that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigError(f"engine.device={name} is no device; use auto, cpu or cuda")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"engine.device={name} but torch sees no CUDA device; use cpu or auto")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise ConfigError(
            f"engine.device={name} but torch sees {count} CUDA devices, counted from cuda:0; "
            f"use cuda or auto"
        )
    return device
