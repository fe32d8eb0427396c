"""Errors of engine=nemo and of the torch engine in bfloat16, against the torch engine in float32.

    python benchmarks/nemo_precision.py --layers 8 --frames 17 model=7b

One GPU, random weights of trained size, one sample. Prints a JSON line for each: the relative
error of prediction, loss and gradients (all as one vector, and the worst parameter), and seconds
of a forward and backward pass. `--cpu` rehearses it in float32 without Transformer Engine.
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hydra import compose, initialize_config_dir
from megatron.core import parallel_state

from cosmos_hydra import config as schema
from cosmos_hydra.config import Config, Precision
from cosmos_hydra.data.clips import latent_shape
from cosmos_hydra.engines.nemo.architecture import transformer_config
from cosmos_hydra.engines.nemo.layers import block_spec
from cosmos_hydra.engines.nemo.transformer import MegatronTransformer
from cosmos_hydra.engines.nemo.weights import fill, whole_weights
from cosmos_hydra.engines.torch.attention import set_attention
from cosmos_hydra.engines.torch.degrees import Degrees
from cosmos_hydra.engines.torch.kernels import effective_attention, kernel_of
from cosmos_hydra.models.transformer import Denoiser, build_transformer
from cosmos_hydra.overrides import conf_folder

Found = tuple[torch.Tensor, dict[str, torch.Tensor], float]


def config_of(overrides: list[str]) -> Config:
    schema.register()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        fixed = ["stage=post_train", "model.weights.from_scratch=true"]
        return schema.load(compose("config", [*fixed, *overrides]))


def weights_of(config: Config) -> dict[str, torch.Tensor]:
    """Return weights by diffusers' names, bfloat16 numbers as released ones are."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        parameters = dict(build_transformer(config.model).named_parameters())
    return {
        name: (torch.randn(p.shape, generator=generator) * p.shape[-1] ** -0.5).bfloat16().float()
        for name, p in parameters.items()
    }


def run(denoiser: Denoiser, inputs: dict[str, Any], autocast: Any) -> tuple[torch.Tensor, float]:
    """Return a prediction and the seconds of the second of two passes; gradients are filled."""
    for _ in range(2):
        denoiser.zero_grad(set_to_none=True)
        synchronise()
        began_s = time.perf_counter()
        with autocast():
            prediction = denoiser(**inputs)
        target = torch.randn(
            prediction.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32
        ).to(prediction.device)
        (prediction.float() - target).square().mean().backward()
        synchronise()
        took_s = time.perf_counter() - began_s
    return prediction.detach().float().cpu(), took_s


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def of_torch(
    config: Config,
    inputs: dict[str, Any],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Found:
    transformer = build_transformer(config.model)
    transformer.load_state_dict(weights_of(config))
    transformer.to(device)
    set_attention(transformer, kernel_of(effective_attention(config, device)))
    prediction, took_s = run(Denoiser(transformer), inputs, autocast)
    gradients = {n: p.grad.float().cpu() for n, p in transformer.named_parameters()}
    return prediction, gradients, took_s


def of_nemo(config: Config, inputs: dict[str, Any], device: torch.device) -> Found:
    architecture = transformer_config(config, Degrees(1, 1, 1, 1), device)
    with torch.device(device):
        network = MegatronTransformer(config.model, architecture, block_spec(device))
    weights, head_dim = weights_of(config), config.model.head_dim
    fill(network, head_dim, weights.__getitem__)
    prediction, took_s = run(Denoiser(network), inputs, nullcontext)
    gradients = whole_weights(network, head_dim, lambda p: p.grad)
    return prediction, {n: g.float().cpu() for n, g in gradients}, took_s


def errors(found: Found, wanted: Found) -> dict[str, Any]:
    gradients, expected = found[1], wanted[1]
    each = {n: ((gradients[n] - g).norm() / g.norm()).item() for n, g in expected.items()}
    worst = max(each, key=lambda name: each[name])
    square = sum((gradients[n] - g).square().sum() for n, g in expected.items())
    norm = sum(g.square().sum() for g in expected.values())
    return {
        "prediction": ((found[0] - wanted[0]).norm() / wanted[0].norm()).item(),
        "gradient": (square / norm).sqrt().item(),
        "worst": [worst, each[worst]],
        "pass_s": found[2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    device = torch.device("cpu" if arguments.cpu else "cuda")
    typed = [f"model.num_layers={arguments.layers}", f"data.frames={arguments.frames}"]
    config = config_of([*typed, *arguments.overrides])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = latent_shape(config.data, config.model.latent_channels)
        latent_BCFHW = torch.randn(1, *shape)
        text_BTD = torch.randn(1, config.model.text_tokens, config.model.text_dim)
    inputs: dict[str, Any] = {
        "latent_BCFHW": latent_BCFHW.to(device),
        "c_noise_B": torch.tensor([0.1], device=device),
        "text_BTD": text_BTD.to(device),
        "padding_B1HW": torch.zeros(1, 1, *shape[2:], device=device),
        "fps": 24.0,
    }
    rendezvous = f"file://{Path.cwd() / '.nemo_precision'}"
    Path(".nemo_precision").unlink(missing_ok=True)
    backend = "gloo" if arguments.cpu else "nccl"
    dist.init_process_group(backend, init_method=rendezvous, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    config.parallel.precision = Precision.fp32
    wanted = of_torch(config, inputs, device, nullcontext)
    print(json.dumps({"engine": "torch", "precision": "fp32", "pass_s": wanted[2]}))
    if not arguments.cpu:
        config.parallel.precision = Precision.bf16
        half = of_torch(config, inputs, device, lambda: torch.autocast("cuda", torch.bfloat16))
        print(json.dumps({"engine": "torch", "precision": "bf16", **errors(half, wanted)}))
    found = of_nemo(config, inputs, device)
    precision = config.parallel.precision.name
    print(json.dumps({"engine": "nemo", "precision": precision, **errors(found, wanted)}))
    dist.destroy_process_group()
    Path(".nemo_precision").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
