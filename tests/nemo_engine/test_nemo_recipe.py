"""What the objects of NeMo's trainer are set to for the finetune recipes, against the old ones."""

from collections.abc import Iterator
from typing import Any

import pytest
from composing import loaded
from megatron_ranks import HAS_NEMO

from cosmos_hydra.checks import check
from cosmos_hydra.config import Config
from cosmos_hydra.engines.torch.degrees import degrees_of
from cosmos_hydra.errors import ConfigError, StageError
from cosmos_hydra.models.size import width

pytestmark = pytest.mark.skipif(not HAS_NEMO, reason="nemo_toolkit is not installed")
GPUS = 8
WEIGHTS = "model.weights.path=/weights"
# the recipes of the same name: NVIDIA/Cosmos d185299, cosmos1/models/diffusion/nemo/post_training
OLD_RECIPE: dict[str, Any] = {
    "optimizer": "adam",
    "distributed optimizer": True,
    "learning rate, first and last step": (1e-6, 1e-6),
    "weight decay": 0.0,
    "betas": (0.9, 0.999),
    "epsilon": 1e-8,
    "gradient clipping": 1.0,
    "precision": "bf16-mixed",
    "weights": "torch.bfloat16",
    "gradients reduced in float32": True,
    "tensor parallel": 8,
    "sequence parallel": True,
    "context parallel": 1,
    "pipeline parallel": 1,
    "micro batch": 1,
    "global batch": 1,
    "steps": 1000,
    "steps between checkpoints": 200,
    "checkpoints kept": "all",
    "asynchronous saving": False,
    "load strictness": "log_all",
    "Megatron-FSDP": False,
    "overlapped parameter gathers": False,
    "overlapped gradient reduction": False,
    "recompute": ("full", "uniform", 1),
}
SIZES = {"7b": (28, 4096, 32, 16384), "14b": (36, 5120, 40, 20480)}


def recipe(model: str, *overrides: str) -> Config:
    experiment = f"experiment=cosmos_diffusion_{model}_text2world_finetune"
    return loaded(experiment, "stage=post_train", "engine=nemo", WEIGHTS, *overrides)


def built(config: Config) -> dict[str, Any]:
    """Return what the built objects say, in the words of the table."""
    from cosmos_hydra.engines.nemo import settings
    from cosmos_hydra.engines.nemo.architecture import recompute_options
    from cosmos_hydra.engines.torch.optimizer import learning_rate

    degrees = degrees_of(config.parallel, GPUS)
    strategy, plugin = settings.strategy(config, degrees), settings.precision(config)
    optim = settings.optimizer(config)
    rate, steps = optim.lr_scheduler, config.trainer.max_steps
    rates = tuple(learning_rate(rate.optim, step, rate.max_steps) for step in (0, steps - 1))
    recompute = recompute_options(config)
    return {
        "optimizer": optim.config.optimizer,
        "distributed optimizer": optim.config.use_distributed_optimizer
        and strategy.ddp_config.use_distributed_optimizer,
        "learning rate, first and last step": rates,
        "weight decay": optim.config.weight_decay,
        "betas": (optim.config.adam_beta1, optim.config.adam_beta2),
        "epsilon": optim.config.adam_eps,
        "gradient clipping": optim.config.clip_grad,
        "precision": plugin.precision,
        "weights": str(plugin.dtype_config.params_dtype),
        "gradients reduced in float32": plugin.dtype_config.grad_reduce_in_fp32
        and strategy.ddp_config.grad_reduce_in_fp32,
        "tensor parallel": strategy.tensor_model_parallel_size,
        "sequence parallel": strategy.sequence_parallel,
        "context parallel": strategy.context_parallel_size,
        "pipeline parallel": strategy.pipeline_model_parallel_size,
        "micro batch": config.trainer.micro_batch_size,
        "global batch": config.trainer.global_batch_size,
        "steps": steps,
        "steps between checkpoints": config.trainer.save_every,
        "checkpoints kept": config.trainer.keep or "all",
        "asynchronous saving": strategy.async_save,
        "load strictness": strategy.ckpt_load_strictness,
        "Megatron-FSDP": strategy.ddp_config.use_megatron_fsdp,
        "overlapped parameter gathers": strategy.ddp_config.overlap_param_gather,
        "overlapped gradient reduction": strategy.ddp_config.overlap_grad_reduce,
        "recompute": tuple(recompute.values()) or "none",
    }


@pytest.mark.parametrize("model", SIZES)
def test_the_finetune_recipes_are_the_old_ones_setting_by_setting(model: str) -> None:
    config = recipe(model, "parallel.recompute=full")
    assert check(config) == []
    assert built(config) == OLD_RECIPE


def test_without_more_only_7b_differs_which_keeps_its_activations() -> None:
    # an earlier version of the old recipe did so too
    found = built(recipe("7b"))
    assert {key for key in OLD_RECIPE if found[key] != OLD_RECIPE[key]} == {"recompute"}
    assert found["recompute"] == "none"
    assert built(recipe("14b")) == OLD_RECIPE


@pytest.mark.parametrize("model", SIZES)
def test_the_network_has_the_released_sizes(model: str) -> None:
    import torch

    from cosmos_hydra.engines.nemo.architecture import transformer_config

    config = recipe(model)
    device, degrees = torch.device("cpu"), degrees_of(config.parallel, GPUS)
    found = transformer_config(config, degrees, device)
    sizes = (found.num_layers, found.hidden_size, found.num_attention_heads, found.ffn_hidden_size)
    assert sizes == SIZES[model]
    assert found.hidden_size == width(config.model)
    assert (found.kv_channels, found.num_query_groups) == (128, found.num_attention_heads)
    # lost in the old one's data classes
    assert (found.normalization, found.layernorm_epsilon) == ("RMSNorm", 1e-6)
    assert not found.add_bias_linear
    assert found.activation_func is torch.nn.functional.gelu
    assert not found.bias_activation_fusion
    assert found.qk_layernorm


def test_devices_without_cuda_are_refused() -> None:
    import torch

    from cosmos_hydra.engines.nemo.trainer import check_device

    check_device(torch.device("cuda"))
    with pytest.raises(ConfigError) as device:
        check_device(torch.device("cpu"))
    assert str(device.value) == (
        "engine.name=nemo trains on CUDA devices, not on cpu; use engine=torch"
    )


def test_a_step_of_unequal_passes_is_refused() -> None:
    from cosmos_hydra.engines.nemo.module import Passes

    class Steps:
        def steps(self, first_step: int, last_step: int) -> Iterator[list[str]]:
            yield from (["a", "b"], ["c"])

    passes = iter(Passes(Steps(), 0, 2, 2))
    assert [next(passes), next(passes)] == ["a", "b"]
    with pytest.raises(StageError) as refusal:
        next(passes)
    assert str(refusal.value) == (
        "engine=nemo needs steps of 2 equal passes, but a step has 1, since its samples differ in "
        "frame rate; set data.fps and preprocess again, or use trainer.micro_batch_size=1 or "
        "engine=torch"
    )


def test_own_switches_arrive() -> None:
    from cosmos_hydra.engines.nemo import settings
    from cosmos_hydra.engines.nemo.architecture import recompute_options

    fp8 = settings.precision(recipe("7b", "engine.fp8=delayed")).dtype_config
    assert (fp8.fp8, fp8.fp8_recipe, fp8.params_dtype.itemsize) == ("hybrid", "delayed", 2)
    config = recipe("7b", "engine.megatron_fsdp=true")
    strategy = settings.strategy(config, degrees_of(config.parallel, GPUS))
    assert strategy.ddp_config.use_megatron_fsdp
    assert strategy.ddp_config.data_parallel_sharding_strategy == "optim_grads_params"
    part = recipe("7b", "parallel.recompute=full", "parallel.recompute_except=10")
    assert list(recompute_options(part).values()) == ["full", "block", 18]
