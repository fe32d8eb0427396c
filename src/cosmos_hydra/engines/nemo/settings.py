"""A config as the objects that NeMo's trainer is made of; nothing here touches a device."""

from typing import Any

import nemo.lightning as nl
import torch
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from nemo.lightning import _strategy_lib
from nemo.lightning.pytorch.optim import LRSchedulerModule, MegatronOptimizerModule
from torch.optim.lr_scheduler import LambdaLR

from cosmos_hydra.config import Config, Fp8, OptimConfig, Precision
from cosmos_hydra.engines.torch.degrees import Degrees
from cosmos_hydra.engines.torch.optimizer import learning_rate
from cosmos_hydra.place import world_size


class Rate(LRSchedulerModule):
    """The torch engine's learning rate, as a function of the step."""

    def __init__(self, optim: OptimConfig, max_steps: int) -> None:
        super().__init__()
        self.optim, self.max_steps = optim, max_steps

    def scheduler(self, model: Any, optimizers: Any) -> dict[str, Any]:
        """Return what Lightning wants of a schedule by steps."""

        def factor(step: int) -> float:
            return learning_rate(self.optim, step, self.max_steps) / self.optim.lr

        schedule = LambdaLR(optimizers, factor)
        return {
            "optimizer": optimizers,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class Strategy(nl.MegatronStrategy):
    """NeMo's, in a job whose processes know each other already."""

    def setup_distributed(self) -> None:
        """Make Megatron's groups; NeMo does so only where it makes the first group."""
        super().setup_distributed()
        if not parallel_state.model_parallel_is_initialized():
            _strategy_lib.init_model_parallel(self.model)


def is_bf16(config: Config) -> bool:
    """Return whether weights and compute are bfloat16; `auto` is, on CUDA."""
    return config.parallel.precision is not Precision.fp32


def precision(config: Config) -> nl.MegatronMixedPrecision:
    """Return the plugin; gradients are added up in float32, and Adam's weights are float32."""
    if not is_bf16(config):
        return nl.MegatronMixedPrecision("32")
    fp8 = config.engine.fp8
    in_fp8 = {"fp8": "hybrid", "fp8_recipe": fp8.name, "fp8_amax_history_len": 1024}
    in_fp8["fp8_amax_compute_algo"] = "max"
    return nl.MegatronMixedPrecision(
        "bf16-mixed",
        # without this the plugin makes the modules' dtype float32
        params_dtype=torch.bfloat16,
        grad_reduce_in_fp32=True,
        **({} if fp8 is Fp8.none else in_fp8),
    )


def optimizer(config: Config) -> MegatronOptimizerModule:
    """Return Megatron's Adam with decoupled weight decay, its state shared by dp ranks."""
    optim, dtype = config.optim, torch.bfloat16 if is_bf16(config) else torch.float32
    beta1, beta2 = optim.betas
    return MegatronOptimizerModule(
        OptimizerConfig(
            optimizer="adam",
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            adam_beta1=beta1,
            adam_beta2=beta2,
            adam_eps=optim.eps,
            clip_grad=optim.grad_clip or 0.0,
            bf16=is_bf16(config),
            params_dtype=dtype,
            use_distributed_optimizer=True,
        ),
        lr_scheduler=Rate(optim, config.trainer.max_steps),
        # as in the torch engine, weights of norms decay too
        no_weight_decay_cond=lambda name, parameter: False,
    )


def gradients(config: Config) -> DistributedDataParallelConfig:
    """Return how gradients, and with Megatron-FSDP weights, are shared."""
    is_sharding = config.engine.megatron_fsdp
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=True,
        # the run looks at loss and norm itself, and ends with a sentence
        check_for_nan_in_grad=False,
        overlap_grad_reduce=is_sharding,
        overlap_param_gather=is_sharding,
        use_megatron_fsdp=is_sharding,
        data_parallel_sharding_strategy="optim_grads_params" if is_sharding else "no_shard",
    )


def strategy(config: Config, degrees: Degrees) -> Strategy:
    """Return the strategy for the degrees of a mesh."""
    is_sharding = config.engine.megatron_fsdp
    return Strategy(
        tensor_model_parallel_size=degrees.tp,
        context_parallel_size=degrees.cp,
        sequence_parallel=config.parallel.sequence_parallel and degrees.tp > 1,
        pipeline_dtype=torch.bfloat16 if is_bf16(config) else torch.float32,
        num_distributed_optimizer_instances=degrees.dp_replicate,
        ddp=gradients(config),
        fsdp="megatron" if is_sharding else None,
        cluster_environment=TorchElasticEnvironment() if world_size() > 1 else None,
        # checkpoints appear when they are whole, and any number of ranks goes on from them
        ckpt_async_save=False,
        ckpt_optim_fully_reshardable=True,
        save_ckpt_format="fsdp_dtensor" if is_sharding else "torch_dist",
        ckpt_load_strictness="log_all",
        replace_progress_bar=False,
    )
