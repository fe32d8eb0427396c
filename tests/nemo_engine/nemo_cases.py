"""What the ranks of a test of the nemo engine do: both networks, the same weights and inputs."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.distributed.finalize_model_grads import (
    _allreduce_non_tensor_model_parallel_grads,
)
from small_runs import small_config

from cosmos_hydra.config import Config
from cosmos_hydra.engines.nemo.architecture import transformer_config
from cosmos_hydra.engines.nemo.layers import block_spec
from cosmos_hydra.engines.nemo.transformer import MegatronTransformer
from cosmos_hydra.engines.nemo.weights import fill, shapes_of, whole_weights
from cosmos_hydra.engines.torch.degrees import degrees_of
from cosmos_hydra.models.transformer import Denoiser, build_transformer
from cosmos_hydra.weights.locate import locate
from cosmos_hydra.weights.open import open_weights

CPU = torch.device("cpu")
FPS = 12.0


def join(config: Config) -> MegatronTransformer:
    """Return this rank's part of a network without values."""
    dist.init_process_group("gloo")
    parallel = config.parallel
    parallel_state.initialize_model_parallel(parallel.tp, context_parallel_size=parallel.cp)
    degrees = degrees_of(parallel, dist.get_world_size())
    # where Megatron makes buffers, and what it waits for before it saves
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment, return-value]
    torch.cuda.synchronize = lambda: None  # type: ignore[assignment, misc]
    return MegatronTransformer(
        config.model, transformer_config(config, degrees, CPU), block_spec(CPU)
    )


def random_weights(config: Config) -> dict[str, torch.Tensor]:
    """Return weights by diffusers' names, none of them zero, of the size of trained ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        parameters = dict(build_transformer(config.model).named_parameters())
    return {
        name: torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
        for name, parameter in parameters.items()
    }


def inputs_of(config: Config, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Return a batch of two whose samples differ in everything; 4 frames of 4 x 6 tokens."""
    generator = torch.Generator().manual_seed(1)
    channels = config.model.latent_channels + config.model.condition_mask
    padding_B1HW = torch.zeros(2, 1, 8, 12, dtype=dtype)
    padding_B1HW[1, :, :, 8:] = 1.0
    text_BTD = torch.randn(2, 6, config.model.text_dim, generator=generator)
    return {
        "latent_BCFHW": torch.randn(2, channels, 4, 8, 12, generator=generator).to(dtype),
        "c_noise_B": torch.tensor([-0.5, 0.4], dtype=dtype),
        "text_BTD": text_BTD.to(dtype),
        "padding_B1HW": padding_B1HW,
    }


def run_network(network: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """Return the prediction, and fill the gradients of a fixed weighted sum of it."""
    prediction = Denoiser(network)(**inputs, fps=FPS)
    generator = torch.Generator().manual_seed(2)
    prediction.backward(torch.randn(prediction.shape, generator=generator).to(prediction))
    return prediction.detach()


def sum_gradients(network: MegatronTransformer) -> None:
    """Add up what ranks hold of gradients, over tp by Megatron's own rule."""
    network.ddp_config = DistributedDataParallelConfig()
    _allreduce_non_tensor_model_parallel_grads([network], network.config)
    for parameter in network.parameters():
        if parameter.grad is not None and network.config.context_parallel_size > 1:
            dist.all_reduce(parameter.grad, group=parallel_state.get_context_parallel_group())


def error_of(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the norm of the difference over that of what is wanted."""
    return ((found - wanted).norm() / wanted.norm()).item()


def compare(overrides: tuple[str, ...], out: Path) -> None:
    """Save how far prediction and gradients are from those of the torch engine's network."""
    config = small_config(Path(), *overrides)
    network = join(config).train()
    weights = random_weights(config)
    fill(network, config.model.head_dim, weights.__getitem__)
    reference = build_transformer(config.model).train()
    reference.load_state_dict(weights)
    inputs = inputs_of(config)
    wanted = run_network(reference, inputs)
    found = run_network(network, inputs)
    sum_gradients(network)
    gradients = dict(whole_weights(network, config.model.head_dim, lambda p: p.grad))
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    assert gradients.keys() == expected.keys()
    assert min(gradient.norm() for gradient in expected.values()) > 0
    errors = {name: error_of(gradients[name], expected[name]) for name in expected}
    back = dict(whole_weights(network, config.model.head_dim))
    assert [name for name in weights if not torch.equal(back[name], weights[name])] == []
    worst = max(errors, key=lambda name: errors[name])
    result = {"forward": error_of(found, wanted), "worst": worst, "gradient": errors[worst]}
    (out / f"rank_{dist.get_rank()}.json").write_text(json.dumps(result))


def load_and_save(overrides: tuple[str, ...], folder: Path, out: Path) -> None:
    """Fill this rank's part of a network from a folder of any format, and save it by Megatron."""
    config = small_config(Path(), *overrides)
    network = join(config)
    source = open_weights(locate(str(folder), "resume.path"), shapes_of(config.model))
    fill(network, config.model.head_dim, source.read)
    if dist.get_rank() == 0:
        out.mkdir()
    dist.barrier()
    dist_checkpointing.save(network.sharded_state_dict("module."), str(out))


def load_saved(overrides: tuple[str, ...], folder: Path, out: Path) -> None:
    """Fill this rank's part from Megatron's checkpoint by Megatron, and save all weights."""
    config = small_config(Path(), *overrides)
    network = join(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    table = dist_checkpointing.load(network.sharded_state_dict("module."), str(folder))
    found = {name.removeprefix("module."): tensor for name, tensor in table.items()}
    network.load_state_dict(found, strict=False)
    whole = dict(whole_weights(network, config.model.head_dim))
    if dist.get_rank() == 0:
        torch.save(whole, out)
