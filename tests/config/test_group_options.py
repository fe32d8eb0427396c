"""Every option of every config group composes, loads, and arrives in the dataclasses."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from composing import composed, loaded

from cosmos_hydra.config import Config, Schedule, SourceKind, Stage, to_dict
from cosmos_hydra.overrides import conf_folder, groups

OPTIONS = sorted(file for file in conf_folder().glob("*/*.yaml") if file.parent.name != "hydra")


def literals(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a YAML file that are neither interpolated nor missing, by dotted key."""
    flat = {}
    for key, value in values.items():
        if key == "hydra":  # what runs the job is no setting of it
            continue
        if isinstance(value, dict):
            flat |= literals(value, f"{prefix}{key}.")
        elif key != "defaults" and "${" not in str(value) and value != "???":
            flat[f"{prefix}{key}"] = value
    return flat


def value_of(config: Config, key: str) -> Any:
    """Return a value of a loaded config, enums by name."""
    value: Any = to_dict(config)
    for part in key.split("."):
        value = value[part]
    return value


@pytest.mark.parametrize("file", OPTIONS, ids=lambda file: f"{file.parent.name}={file.stem}")
def test_every_option_of_every_group_arrives_in_the_dataclasses(file: Path) -> None:
    group, option = file.parent.name, file.stem
    config = loaded(*() if group == "data" else ("data=robot",), f"{group}={option}")
    prefix = "" if group in ("experiment", "launch", "sweep") else f"{group}."
    wanted = literals(yaml.safe_load(file.read_text()), prefix)
    wanted.pop("stage", None)  # typed, and what is typed wins
    # that is Hydra's
    wanted = {key: value for key, value in wanted.items() if not key.startswith("hydra.")}
    found = {key: value_of(config, key) for key in wanted}
    # YAML reads 2e-3 as text
    assert found == {
        key: type(found[key])(value) if isinstance(value, str) else value
        for key, value in wanted.items()
    }


def test_the_groups_are_those_of_the_folder() -> None:
    assert {file.parent.name for file in OPTIONS} <= set(groups())
    assert {"model", "data", "parallel", "engine", "optim", "experiment"} <= set(groups())
    assert "hydra" not in groups()


def test_no_config_names_python_objects_to_build() -> None:
    files = list(conf_folder().rglob("*.yaml"))
    assert len(files) > len(OPTIONS)
    assert [file.name for file in files if "_target_" in file.read_text()] == []


def test_every_option_begins_with_a_comment_on_when_to_choose_it() -> None:
    for file in conf_folder().rglob("*.yaml"):
        lines = [line for line in file.read_text().splitlines() if "@package" not in line]
        assert lines[0].startswith("# "), file
        assert len(lines[0]) > 20, file


def test_a_typed_group_or_key_beats_the_experiment() -> None:
    plain = loaded("experiment=quickstart")
    assert (plain.model.name, plain.data.kind) == ("tiny", SourceKind.synthetic)
    config = loaded(
        "experiment=quickstart",
        "model=7b",
        "data=robot",
        "data.source=/videos",
        "trainer.max_steps=3",
        "name=mine",
    )
    assert (config.model.name, config.model.num_layers) == ("7b", 28)
    assert (config.data.kind, config.data.frames) == (SourceKind.folder, 121)
    assert config.data.prompt == "A video of sks teal robot."
    assert (config.trainer.max_steps, config.name) == (3, "mine")
    # what nobody typed stays the experiment's
    assert config.trainer.global_batch_size == plain.trainer.global_batch_size > 1
    assert config.optim.schedule is plain.optim.schedule is Schedule.cosine


def test_the_experiment_sets_the_stage_and_the_name() -> None:
    config = composed("experiment=quickstart")
    assert (config.stage, config.name) == (Stage.pipeline, "quickstart")


def test_the_learning_rate_and_guidance_follow_the_model_unless_typed() -> None:
    for model, rate in (("tiny", 1e-3), ("7b", 1e-6), ("14b", 1e-6)):
        config = loaded(f"model={model}")
        assert config.optim.lr == config.model.default_lr == rate
        assert config.generate.guidance == config.model.default_guidance
    config = loaded("model=7b", "optim.lr=0.25", "generate.guidance=2")
    assert (config.optim.lr, config.generate.guidance) == (0.25, 2.0)
