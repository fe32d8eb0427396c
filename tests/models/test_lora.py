"""Adapters: where peft puts them, their names, first values and number."""

import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from small_runs import small_config

from cosmos_hydra.config import Config
from cosmos_hydra.engines.torch.degrees import check_degrees, degrees_of
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.models.lora import (
    add_adapters,
    initial_adapter,
    named_adapters,
    named_weights,
    write_adapter,
)
from cosmos_hydra.models.size import adapter_count, held_count, linear_layers, trained_count
from cosmos_hydra.models.transformer import build_transformer

LORA = ("peft.kind=lora", "peft.rank=4", "peft.alpha=8")


def adapted(*overrides: str) -> tuple[Config, torch.nn.Module]:
    """Return a config and its transformer with adapters, on the meta device."""
    config = small_config(Path(), *LORA, *overrides)
    with torch.device("meta"):
        transformer = build_transformer(config.model)
        add_adapters(transformer, config.peft)
    return config, transformer


def test_the_linear_layers_are_those_of_the_class() -> None:
    config = small_config(Path())
    with torch.device("meta"):
        transformer = build_transformer(config.model)
    found = {
        name: (module.in_features, module.out_features)
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert linear_layers(config.model) == found


def test_names_are_those_without_adapters_and_only_adapters_are_trained() -> None:
    config, transformer = adapted()
    with torch.device("meta"):
        plain = build_transformer(config.model)
    weights, adapters = dict(named_weights(transformer)), dict(named_adapters(transformer))
    assert list(weights) == [name for name, _ in plain.named_parameters()]
    assert len(adapters) == 2 * 2 * 10
    assert "transformer_blocks.1.attn2.to_out.0.lora_B.weight" in adapters
    assert not any(parameter.requires_grad for parameter in weights.values())
    assert all(parameter.requires_grad for parameter in adapters.values())
    assert {parameter.dtype for parameter in adapters.values()} == {torch.float32}
    assert list(named_adapters(plain)) == []


@pytest.mark.parametrize(
    "targets", [["to_q"], ["attn1.to_k", "to_out.0"], ["proj_out", "ff.net.2", "norm1.linear_2"]]
)
def test_the_count_of_trained_parameters_is_that_of_the_class(targets: list[str]) -> None:
    config, transformer = adapted(f"peft.targets=[{','.join(targets)}]")
    adapters = dict(named_adapters(transformer))
    count = sum(parameter.numel() for parameter in adapters.values())
    assert trained_count(config) == adapter_count(config) == count > 0
    assert held_count(config) == sum(p.numel() for p in transformer.parameters())
    layers = {name.partition(".lora_")[0] for name in adapters}
    assert all(f".{layer}".endswith(tuple(f".{t}" for t in targets)) for layer in layers)
    everything = small_config(Path())
    assert trained_count(everything) == held_count(everything) > count


def test_first_values_are_a_function_of_seed_and_name() -> None:
    name, shape = "transformer_blocks.0.attn1.to_q.lora_A.weight", torch.Size((4, 192))
    first = initial_adapter(name, shape, 0)
    assert torch.equal(first, initial_adapter(name, shape, 0))
    assert not torch.equal(first, initial_adapter(name, shape, 1))
    assert not torch.equal(first, initial_adapter(name.replace("to_q", "to_k"), shape, 0))
    # kaiming uniform with a = sqrt(5) is uniform up to 1 / sqrt(inputs)
    limit = 1 / math.sqrt(192)
    assert 0.9 * limit < first.abs().max() <= limit
    assert not initial_adapter(name.replace("lora_A", "lora_B"), torch.Size((192, 4)), 0).any()


def test_the_config_of_an_adapter_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    config = small_config(Path(), *LORA)
    for name in ("one", "other"):
        write_adapter(tmp_path / name, {"a.lora_A.weight": torch.ones(2, 2)}, config.peft, "base")
    found = [(tmp_path / name / "adapter_config.json").read_text() for name in ("one", "other")]
    assert found[0] == found[1]
    facts = json.loads(found[0])
    assert (facts["peft_type"], facts["r"], facts["lora_alpha"]) == ("LORA", 4, 8)
    assert facts["target_modules"] == sorted(config.peft.targets)
    assert facts["base_model_name_or_path"] == "base"


def test_tensor_parallel_is_refused() -> None:
    config = small_config(Path(), *LORA, "parallel.tp=-1", "model.num_heads=4")
    assert check_degrees(config, degrees_of(config.parallel, 2)) == [
        (
            "parallel.tp=2 does not work with peft=lora; share tokens with parallel.cp and "
            "weights with parallel.dp_shard"
        )
    ]


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    message = "peft=lora needs the peft library; pip install cosmos-hydra[lora]"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        add_adapters(torch.nn.Module(), small_config(Path(), *LORA).peft)
