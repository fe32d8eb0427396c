"""Configs composed as the command line composes them, without running anything."""

import functools

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from cosmos_hydra import config as schema
from cosmos_hydra.config import Config
from cosmos_hydra.overrides import conf_folder


@functools.cache
def composed(*overrides: str) -> DictConfig:
    """Return the config of a command line; do not change it."""
    schema.register()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", list(overrides))


def loaded(*overrides: str) -> Config:
    """Return the plain objects of a command line; stage=preprocess unless it names another."""
    return schema.load(composed("stage=preprocess", *overrides))


def changed(*values: str, stage: str = "preprocess", model: str = "tiny") -> Config:
    """Return the default config with some keys changed; composed once, so a table is quick."""
    base = composed(f"stage={stage}", f"model={model}")
    return schema.load(OmegaConf.merge(base, OmegaConf.from_dotlist(list(values))))
