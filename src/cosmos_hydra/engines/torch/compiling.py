"""Where compiling pays, which takes a quarter of a minute, and whether it can be done here."""

import shutil

import torch

from cosmos_hydra.config import Config
from cosmos_hydra.diffusion.generation import clip_passes
from cosmos_hydra.engines.torch.degrees import token_count
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.models.size import width

# what saves twice the 15 s that compiling takes, in numbers of the blocks' stream (tokens x width x
# blocks x passes): 7b on an H200 saves 1.65 s for each 1.3e10
WORTH_COMPILING = 2.3e11


def has_compiler() -> bool:
    """Return whether there is the C compiler that Triton starts kernels with."""
    return any(shutil.which(name) for name in ("cc", "gcc", "clang"))


def compiles_generation(config: Config, device: torch.device) -> bool:
    """Return whether a video is made with compiled blocks; the same for all of a command.

    It depends on one video alone, so that making it again with others gives the same bytes.

    Raises: ConfigError where it is asked for and there is no compiler.
    """
    asked = config.generate.compile
    if asked and not has_compiler():
        raise ConfigError(
            "generate.compile=true needs a C compiler (cc, gcc or clang), and there is none; "
            "install one, or use generate.compile=false"
        )
    if asked is not None:
        return asked
    return device.type == "cuda" and has_compiler() and is_long(config)


def is_long(config: Config) -> bool:
    """Return whether a video takes so many passes over so much that compiling saves time."""
    stream = token_count(config) * width(config.model) * config.model.num_layers
    return stream * clip_passes(config.generate) >= WORTH_COMPILING
