"""Where tensors live."""

import torch

from cosmos_hydra.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """Return the device that engine.device names; `auto` takes CUDA when there is one.

    Raises: ConfigError for a name torch does not know or a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"engine.device={name} is no device; use auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"engine.device={name} but torch sees no CUDA device; use cpu or auto")
    return device
