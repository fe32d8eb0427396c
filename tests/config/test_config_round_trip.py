"""A config written as JSON comes back equal, whatever text it holds."""

import json
from enum import Enum

import pytest
from composing import loaded

from cosmos_hydra import config as schema
from cosmos_hydra.config import Config, Fit, Stage

TEXTS = (
    "a robot, seen from the left",
    "costs ${price} or ${oc.env:HOME}",
    "an open ${ and a closed }",
    "\\${escaped} and \\\\${twice} and \\",
    "both 'kinds' of \"quotes\" (and more) = [1, 2]",
    "two\nlines\tand caf\u00e9 \u673a\u5668\u4eba",
    "null",
    "",
)


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=tiny",),
        ("model=7b", "data=robot", "data.source=/videos", "data.fps=12", "data.fit=pad"),
        ("model=14b", "stage=pipeline", "pipeline.stages=[generate]", "optim.grad_clip=null"),
        ("experiment=quickstart",),
    ],
)
def test_a_config_comes_back_equal_through_json(overrides: tuple[str, ...]) -> None:
    config = loaded(*overrides)
    assert schema.from_dict(json.loads(json.dumps(schema.to_dict(config)))) == config


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back_as_it_was(text: str) -> None:
    config = loaded()
    config.data.prompt = config.generate.prompt = config.data.path = text
    back = schema.from_dict(json.loads(json.dumps(schema.to_dict(config))))
    assert (back.data.prompt, back.generate.prompt, back.data.path) == (text, text, text)
    assert back == config


def test_the_json_holds_names_of_choices_and_no_objects() -> None:
    values = schema.to_dict(loaded("data.fit=pad", "stage=pipeline"))
    assert (values["stage"], values["data"]["fit"]) == ("pipeline", "pad")
    assert values["pipeline"]["stages"] == ["preprocess", "post_train", "generate"]


def test_choices_come_back_as_choices() -> None:
    config = schema.from_dict(schema.to_dict(loaded("data.fit=stretch")))
    assert isinstance(config, Config)
    assert config.data.fit is Fit.stretch
    assert config.pipeline.stages == [Stage.preprocess, Stage.post_train, Stage.generate]
    assert all(isinstance(stage, Enum) for stage in config.pipeline.stages)


def test_a_key_that_the_schema_lacks_is_refused() -> None:
    values = schema.to_dict(loaded())
    values["data"]["colour"] = "teal"
    with pytest.raises(ValueError, match=r"data\.colour: Key 'colour' not in 'DataConfig'"):
        schema.from_dict(values)


def test_a_value_of_another_type_is_refused() -> None:
    values = schema.to_dict(loaded())
    values["trainer"]["max_steps"] = "many"
    with pytest.raises(ValueError, match=r"trainer\.max_steps: Value 'many' of type 'str' could"):
        schema.from_dict(values)
