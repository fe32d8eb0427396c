"""Configs of the released sizes on the clip of NVIDIA's post-training guide: 121 x 704 x 1280."""

from functools import cache

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from cosmos_hydra import config as schema
from cosmos_hydra.config import Config
from cosmos_hydra.overrides import conf_folder


@cache
def _composed(model: str, data: str) -> DictConfig:
    schema.register()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        typed = ["stage=post_train", f"model={model}", f"data={data}", "data.path=samples"]
        return compose("config", [*typed, "data.source=videos"])


def guide(model: str, *changes: str, data: str = "robot") -> Config:
    """Return the config of post_train with some keys changed."""
    return schema.load(
        OmegaConf.merge(_composed(model, data), OmegaConf.from_dotlist(list(changes)))
    )
