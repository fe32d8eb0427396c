"""Whether the network that makes videos is compiled."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from cosmos_hydra import config as schema
from cosmos_hydra.config import Config
from cosmos_hydra.engines.torch.compiling import compiles_generation
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.overrides import conf_folder

CC = "/usr/bin/cc"


def config_of(*typed: str) -> Config:
    schema.register()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return schema.load(compose("config", ["stage=generate", "data=robot", *typed]))


@pytest.mark.parametrize(
    ("typed", "device", "compiler", "is_compiled"),
    [
        (("model=7b",), "cuda", CC, True),
        (("model=7b",), "cuda", None, False),
        (("model=7b",), "cpu", CC, False),
        (("model=7b", "generate.steps=5"), "cuda", CC, False),
        (("model=7b", "generate.compile=false"), "cuda", CC, False),
        (("model=tiny",), "cuda", CC, False),
        (("model=tiny", "generate.compile=true"), "cpu", CC, True),
    ],
)
def test_it_is_where_a_video_takes_long_or_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    typed: tuple[str, ...],
    device: str,
    compiler: str | None,
    is_compiled: bool,
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: compiler)
    config = config_of(*typed)
    assert compiles_generation(config, torch.device(device)) == is_compiled


def test_asking_for_it_without_a_compiler_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        compiles_generation(config_of("generate.compile=true"), torch.device("cpu"))
    assert str(caught.value) == (
        "generate.compile=true needs a C compiler (cc, gcc or clang), and there is none; install "
        "one, or use generate.compile=false"
    )
