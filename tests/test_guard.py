"""What the guard lets through, and that nothing it stands on is missing from this Hydra."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from cosmos_hydra import config as schema
from cosmos_hydra import guard
from cosmos_hydra.overrides import conf_folder

HUB = "hf_CanaryOfTheHubThatNobodyMaySee0123456"
LOADER, REPOSITORY = guard.ConfigLoaderImpl, guard.ConfigRepository


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    schema.register()
    guard.install()


def composed(*overrides: str) -> DictConfig:
    """Return a config as Hydra composes it, its own section included."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)


@pytest.fixture(scope="module")
def plain() -> DictConfig:
    """Return the config without overrides."""
    return composed()


def options() -> list[str]:
    files = [file for file in conf_folder().glob("*/*.yaml") if file.parent.name != "hydra"]
    return [f"{file.parent.name}={file.stem}" for file in files]


def test_our_own_options_pass() -> None:
    assert "experiment=quickstart" in options()
    for option in options():
        composed("stage=preprocess", option)


def test_methods_of_hydra_are_replaced_once() -> None:
    replaced = [LOADER.load_configuration, REPOSITORY.initialize_sources]
    guard.install()
    assert replaced == [LOADER.load_configuration, REPOSITORY.initialize_sources]
    for method in replaced:
        assert not hasattr(method.__wrapped__, "__wrapped__")


@pytest.mark.parametrize(
    "logging",
    [
        {"version": 1},
        {"version": 1, "root": None, "disable_existing_loggers": True},
        {"version": 1, "root": {"level": "ERROR"}, "disable_existing_loggers": False},
    ],
)
def test_logging_configs_may_set_levels(plain: DictConfig, logging: dict[str, Any]) -> None:
    config = deepcopy(plain)
    OmegaConf.update(config, "hydra.job_logging", logging, merge=False, force_add=True)
    assert guard.examine(config) == []


@pytest.mark.parametrize(
    "logging",
    [
        {},
        {"version": "1"},
        {"version": 1, "root": {"level": "ext://sys.stdout"}},
        {"version": 1, "root": {"level": "ERROR", "handlers": []}},
        {"version": 1, "root": ["level"]},
        {"version": 1, "disable_existing_loggers": "ext://sys.stdout"},
        {"version": 1, "incremental": True},
        {"version": 1, "loggers": {"a": {"level": "ext://sys.stdout"}}},
    ],
)
def test_logging_configs_may_set_nothing_else(plain: DictConfig, logging: dict[str, Any]) -> None:
    config = deepcopy(plain)
    OmegaConf.update(config, "hydra.hydra_logging", logging, merge=False, force_add=True)
    assert guard.examine(config) == [
        "hydra.hydra_logging is refused: logging configs can call code; set hydra.verbose=true"
    ]


def test_variables_that_only_tune_may_be_set(plain: DictConfig) -> None:
    config = deepcopy(plain)
    for name in (
        *("NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "NCCL_IB_DISABLE", "OMP_NUM_THREADS"),
        *("CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "TOKENIZERS_PARALLELISM"),
        *("GLOO_SOCKET_IFNAME", "HF_HUB_OFFLINE", "TORCH_DISTRIBUTED_DEBUG"),
    ):
        OmegaConf.update(config, f"hydra.job.env_set.{name}", "1", force_add=True)
    assert guard.examine(config) == []
    for name in (
        *("LD_LIBRARY_PATH", "PYTHONPATH", "NCCL_TUNER_PLUGIN", "NCCL_CONF_FILE", "NCCL_CUDA_PATH"),
        *("NCCL_COMM_ID", "OMP_TOOL_LIBRARIES", "TORCH_EXTENSIONS_DIR", "CC", "WANDB_BASE_URL"),
        *("HF_ENDPOINT", "OPENSSL_CONF", "GCONV_PATH", "EDITOR", "HYDRA_FULL_ERROR"),
    ):
        config = deepcopy(plain)
        OmegaConf.update(config, f"hydra.job.env_set.{name}", "1", force_add=True)
        [line] = guard.examine(config)
        assert line.startswith(f"hydra.job.env_set.{name} is refused: it could load code or")


def test_ordinary_variables_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/scratch")
    monkeypatch.delenv("NOWHERE", raising=False)
    values = OmegaConf.create(
        {
            "set": "${oc.env:PLACE}/runs",
            "default": "${oc.env:NOWHERE,/tmp}",
            "null": "${oc.env:NOWHERE,null}",
            "missing": "${oc.env:NOWHERE}",
        }
    )
    assert (values["set"], values.default, values["null"]) == ("/scratch/runs", "/tmp", None)
    with pytest.raises(InterpolationResolutionError, match="'NOWHERE' not found"):
        _ = values.missing


def test_a_secret_is_never_looked_up(plain: DictConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", HUB)
    looked_up = "looks up HF_TOKEN, a secret, which would be stored with the run; leave it out"
    for text in ("${oc.env:HF_TOKEN}", "a ${ oc.env: 'HF_TOKEN' }", "${oc.env:HF_TOKEN,none}"):
        config = deepcopy(plain)
        config.name = text
        assert guard.examine(config) == [f"name {looked_up}"]
    # however it is written
    values = OmegaConf.create({"kind": "TOKEN", "name": "${oc.env:HF_${kind}}"})
    with pytest.raises(InterpolationResolutionError, match="HF_TOKEN is a secret, which would be"):
        _ = values.name
    config = deepcopy(plain)
    config.data.prompt = "the text \\${oc.env:HF_TOKEN}"
    assert guard.examine(config) == []


def test_a_secret_in_a_file_is_refused(plain: DictConfig) -> None:
    config = deepcopy(plain)
    config.data.prompt = f"a {HUB}"
    [line] = guard.examine(config)
    assert line.startswith("data.prompt holds what looks like a token or password, which would")


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("hydra.job.env_copy=[NOWHERE]", "Hydra cannot compose this: KeyError: 'NOWHERE'"),
        (
            "hydra.sweeper.params={seed: 1}",
            "hydra.sweeper.params.seed is not a config key; did you mean generate.seed?\n",
        ),
    ],
)
def test_what_hydra_stumbles_over_is_one_line(
    command: Command, tmp_path: Path, typed: str, line: str
) -> None:
    refused = command(typed, "stage=preprocess", cwd=tmp_path)
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"cosmos-hydra: {line}")
    assert refused.stderr.count("\n") == 1


def test_hydras_own_help_is_shown(command: Command, tmp_path: Path) -> None:
    shown = command("--hydra-help", cwd=tmp_path)
    assert (shown.code, shown.stderr) == (0, "")
    assert "--config-dir,-cd" in shown.stdout
