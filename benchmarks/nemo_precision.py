"""Errors of engine=nemo and of the torch engine in bfloat16, against the torch engine in float32.

    python benchmarks/nemo_precision.py --layers 8 --frames 17 model=7b

One GPU, random weights of trained size, one sample. Prints a JSON line for each: the relative
error of prediction, loss and gradients (all as one vector, and the worst parameter), and seconds
of a forward and backward pass; with `--fp8` those of engine.fp8=delayed too. `--cpu` rehearses it
in float32 without Transformer Engine.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from hydra import compose, initialize_config_dir
from megatron.core import parallel_state

from cosmos_hydra import config as schema
from cosmos_hydra.config import Config, Fp8, Precision
from cosmos_hydra.data.clips import latent_shape
from cosmos_hydra.engines.nemo.architecture import transformer_config
from cosmos_hydra.engines.nemo.layers import block_spec
from cosmos_hydra.engines.nemo.settings import precision
from cosmos_hydra.engines.nemo.transformer import MegatronTransformer
from cosmos_hydra.engines.nemo.weights import fill, whole_weights
from cosmos_hydra.engines.torch.attention import set_attention
from cosmos_hydra.engines.torch.degrees import Degrees
from cosmos_hydra.engines.torch.kernels import effective_attention, kernel_of
from cosmos_hydra.models.transformer import Denoiser, build_transformer
from cosmos_hydra.overrides import conf_folder

# prediction, loss, gradients by diffusers' names, seconds of a pass
Found = tuple[torch.Tensor, float, dict[str, torch.Tensor], float]


def config_of(overrides: list[str]) -> Config:
    schema.register()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        fixed = ["stage=post_train", "model.weights.from_scratch=true"]
        return schema.load(compose("config", [*fixed, *overrides]))


def weights_of(config: Config, device: torch.device) -> dict[str, torch.Tensor]:
    """Return weights by diffusers' names, bfloat16 numbers as released ones are."""
    generator = torch.Generator(device).manual_seed(0)
    with torch.device("meta"):
        parameters = dict(build_transformer(config.model).named_parameters())
    return {name: drawn(p.shape, generator).bfloat16().float() for name, p in parameters.items()}


def drawn(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator, device=generator.device) * shape[-1] ** -0.5


def run(
    denoiser: Denoiser, inputs: dict[str, Any], autocast: Any
) -> tuple[torch.Tensor, float, float]:
    """Return prediction, loss and the seconds of the second of two passes; gradients are filled."""
    target = drawn(
        inputs["latent_BCFHW"].shape,
        torch.Generator(inputs["latent_BCFHW"].device).manual_seed(1),
    )
    for _ in range(2):
        denoiser.zero_grad(set_to_none=True)
        synchronise()
        began_s = time.perf_counter()
        with autocast():
            prediction = denoiser(**inputs)
        loss = (prediction.float() - target).square().mean()
        loss.backward()
        synchronise()
        took_s = time.perf_counter() - began_s
    return prediction.detach().float(), loss.item(), took_s


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def of_torch(
    config: Config,
    inputs: dict[str, Any],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Found:
    with torch.device("meta"):
        transformer = build_transformer(config.model)
    transformer.to_empty(device=device)
    transformer.load_state_dict(weights_of(config, device))
    set_attention(transformer, kernel_of(effective_attention(config, device)))
    prediction, loss, took_s = run(Denoiser(transformer), inputs, autocast)
    gradients = {n: cast(torch.Tensor, p.grad) for n, p in transformer.named_parameters()}
    return prediction, loss, gradients, took_s


def of_nemo(config: Config, inputs: dict[str, Any], device: torch.device) -> Found:
    architecture = transformer_config(config, Degrees(1, 1, 1, 1), device)
    if config.engine.fp8 is not Fp8.none:
        for name, value in vars(precision(config).dtype_config).items():
            if name.startswith("fp8"):
                setattr(architecture, name, value)
    with torch.device(device):
        network = MegatronTransformer(config.model, architecture, block_spec(device))
    head_dim = config.model.head_dim
    fill(network, head_dim, weights_of(config, device).__getitem__)
    prediction, loss, took_s = run(Denoiser(network), inputs, nullcontext)
    gradients = whole_weights(network, head_dim, lambda p: cast(torch.Tensor, p.grad))
    return prediction, loss, {n: g.float() for n, g in gradients}, took_s


def errors(found: Found, wanted: Found) -> dict[str, Any]:
    gradients, expected = found[2], wanted[2]
    each = {n: ((gradients[n] - g).norm() / g.norm()).item() for n, g in expected.items()}
    worst = max(each, key=lambda name: each[name])
    square = sum((gradients[n] - g).square().sum().item() for n, g in expected.items())
    norm = sum(g.square().sum().item() for g in expected.values())
    return {
        "prediction": ((found[0] - wanted[0]).norm() / wanted[0].norm()).item(),
        "loss": abs(found[1] / wanted[1] - 1),
        "gradient": (square / norm) ** 0.5,
        "worst": [worst, each[worst]],
        "pass_s": found[3],
    }


def inputs_of(config: Config, device: torch.device) -> dict[str, Any]:
    """Return one random sample of the configured clip."""
    generator = torch.Generator().manual_seed(0)
    shape = latent_shape(config.data, config.model.latent_channels)
    text = (1, config.model.text_tokens, config.model.text_dim)
    return {
        "latent_BCFHW": torch.randn(1, *shape, generator=generator).to(device),
        "c_noise_B": torch.tensor([0.1], device=device),
        "text_BTD": torch.randn(text, generator=generator).to(device),
        "padding_B1HW": torch.zeros(1, 1, *shape[2:], device=device),
        "fps": 24.0,
    }


def measure(config: Config, device: torch.device, with_fp8: bool) -> Iterator[dict[str, Any]]:
    """Yield a row for each engine and precision; Megatron's groups are there."""
    inputs = inputs_of(config, device)
    config.parallel.precision = Precision.fp32
    wanted = of_torch(config, inputs, device, nullcontext)
    yield {"engine": "torch", "precision": "fp32", "value": wanted[1], "pass_s": wanted[3]}
    if device.type == "cuda":
        config.parallel.precision = Precision.bf16
        half = of_torch(config, inputs, device, lambda: torch.autocast("cuda", torch.bfloat16))
        yield {"engine": "torch", "precision": "bf16", **errors(half, wanted)}
        del half
    found = of_nemo(config, inputs, device)
    name = config.parallel.precision.name
    yield {"engine": "nemo", "precision": name, **errors(found, wanted)}
    if with_fp8:
        del found
        config.engine.fp8 = Fp8.delayed
        found = of_nemo(config, inputs, device)
        yield {"engine": "nemo", "precision": "fp8", **errors(found, wanted)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--fp8", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    device = torch.device("cpu" if arguments.cpu else "cuda")
    typed = [f"model.num_layers={arguments.layers}", f"data.frames={arguments.frames}"]
    config = config_of([*typed, *arguments.overrides])
    rendezvous = f"file://{Path.cwd() / '.nemo_precision'}"
    Path(".nemo_precision").unlink(missing_ok=True)
    backend = "gloo" if arguments.cpu else "nccl"
    dist.init_process_group(backend, init_method=rendezvous, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    for row in measure(config, device, arguments.fp8):
        print(json.dumps(row), flush=True)
    dist.destroy_process_group()
    Path(".nemo_precision").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
