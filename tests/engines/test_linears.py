"""Float8 products: near the others, under the same names, and refused where they do not run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, Command
from guide import guide
from small_runs import initialised, small_config, trainer_of

from cosmos_hydra.checks import check
from cosmos_hydra.config import Linears, Precision
from cosmos_hydra.engines.torch import linears, shard
from cosmos_hydra.engines.torch.degrees import Degrees, check_degrees
from cosmos_hydra.engines.torch.linears import convert
from cosmos_hydra.engines.torch.memory import estimate_training
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.models.size import split_count

FLOAT8 = "parallel.linears=float8"
# heads and text so that every length divides
WIDE = ("model.num_heads=4", "model.num_layers=2")


@pytest.fixture
def autocast() -> Iterator[None]:
    """Autocast of a GPU, which the layers ask for, and of this CPU."""
    torch.set_autocast_enabled("cuda", True)
    with torch.autocast("cpu", torch.bfloat16):
        yield
    torch.set_autocast_enabled("cuda", False)


def loss_and_gradients(is_float8: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the mean square of an answer of the network, and its gradients by name."""
    model = small_config(Path(), *WIDE).model
    transformer = initialised(model, seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in transformer.parameters():  # zeros would hide gradients
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    before = {name: (p.shape, p.dtype) for name, p in transformer.named_parameters()}
    if is_float8:
        convert(transformer, is_emulated=True)
    assert {name: (p.shape, p.dtype) for name, p in transformer.named_parameters()} == before
    latent_BCFHW = torch.randn(1, model.latent_channels + 1, 2, 16, 16, generator=generator)
    text_BTD = torch.randn(1, model.text_tokens, model.text_dim, generator=generator)
    out = transformer(latent_BCFHW, torch.tensor([0.3]), text_BTD, fps=24.0, return_dict=False)[0]
    loss = out.float().square().mean()
    loss.backward()
    return loss.item(), {name: p.grad for name, p in transformer.named_parameters()}


def test_losses_and_gradients_are_near_those_of_bf16(autocast: None) -> None:
    loss, gradients = loss_and_gradients(is_float8=False)
    other, found = loss_and_gradients(is_float8=True)
    assert other == pytest.approx(loss, rel=0.02)
    assert other != loss
    for name, gradient in gradients.items():
        assert found[name].dtype is torch.float32
        error = (found[name] - gradient).norm() / gradient.norm()
        assert error < 0.25, name


def test_the_large_layers_of_the_blocks_are_converted_and_no_others() -> None:
    transformer = initialised(small_config(Path(), *WIDE).model, seed=0)
    convert(transformer)
    converted = [n for n, m in transformer.named_modules() if type(m).__name__ == "Float8Linear"]
    assert converted == [
        f"transformer_blocks.{number}.{name}" for number in range(2) for name in linears.LARGE
    ]


def test_layers_that_do_not_divide_stay() -> None:
    model = small_config(Path(), "model.num_heads=1", "model.head_dim=24").model
    transformer = initialised(model, seed=0)
    convert(transformer)
    assert not [m for m in transformer.modules() if type(m).__name__ == "Float8Linear"]


def test_a_run_goes_on_with_float8_and_without(
    small_samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint knows nothing of it. Emulated: a CPU has no such products."""

    def emulated(transformer: Any, config: Any, *rest: Any) -> None:
        if config.parallel.linears is Linears.float8:
            convert(transformer, is_emulated=True)

    monkeypatch.setattr(shard, "set_linears", emulated)
    typed = (*WIDE, "trainer.validate_every=0", "trainer.preview_every=0")
    names = []
    for step, choice in enumerate(("default", "float8", "default"), start=1):
        more = (f"trainer.max_steps={step}", f"parallel.linears={choice}")
        trainer = trainer_of(small_config(small_samples, *typed, *more), tmp_path)
        trainer.train()
        assert trainer.step == step
        names.append([(n, p.dtype) for n, p in trainer.transformer.named_parameters()])
    assert names[0] == names[1] == names[2]


def test_a_cpu_is_refused_in_one_line(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    typed = ("stage=post_train", *SMALL, FLOAT8, f"paths.samples={small_samples / 'samples'}")
    outcome = command(*typed, cwd=tmp_path)
    assert outcome.code == 2
    assert outcome.stderr == (
        "cosmos-hydra: parallel.linears=float8 does not run on cpu; it needs a CUDA device of "
        "compute capability 8.9 or more, so use parallel.linears=default\n"
    )


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return torch.device("cuda")


def test_float32_is_refused(hopper: torch.device) -> None:
    config = small_config(Path(), FLOAT8, "parallel.precision=fp32")
    with pytest.raises(ConfigError) as error:
        linears.set_linears(torch.nn.Module(), config, hopper, 1)
    assert str(error.value) == (
        "parallel.linears=float8 does not go with parallel.precision=fp32; use bf16, or "
        "parallel.linears=default"
    )


def test_without_torchao_it_says_what_to_install(
    hopper: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao.float8", None)
    with pytest.raises(ConfigError) as error:
        linears.set_linears(torch.nn.Module(), small_config(Path(), FLOAT8), hopper, 1)
    assert str(error.value) == (
        "parallel.linears=float8 needs torchao; pip install cosmos-hydra[lowbit]"
    )


def test_adapters_and_tensor_parallelism_are_refused() -> None:
    config = small_config(Path(), FLOAT8, "peft.kind=lora")
    assert check(config) == [
        "parallel.linears=float8 does not work with peft=lora; use parallel.linears=default"
    ]
    config = small_config(Path(), FLOAT8, "model.num_heads=4", "trainer.global_batch_size=4")
    (problem,) = check_degrees(config, Degrees(1, 1, 1, tp=2))
    assert problem == (
        "parallel.tp=2 does not work with parallel.linears=float8; share tokens with parallel.cp "
        "and weights with parallel.dp_shard"
    )


def test_the_estimate_leaves_out_the_copies_that_autocast_makes() -> None:
    """Without recomputing they are alive when most is needed."""
    config, other = guide("7b"), guide("7b", FLOAT8)
    needed = [estimate_training(c, "cuda", Precision.bf16).activations_gb for c in (config, other)]
    assert needed[0] - needed[1] == pytest.approx(2e-9 * split_count(config.model), rel=1e-6)
