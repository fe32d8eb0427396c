"""One forward pass of a full-size model in float32, under autocast and with bfloat16 weights.

    python benchmarks/forward_precision.py model=7b data=robot

Prints a line each: seconds, and how far the output is from that of float32, over its root mean
square. Weights are random, made on the device, all parts at work; inputs are random at the
configured clip. float32 does not use TF32.
"""

import argparse
import time

import torch
from hydra import compose, initialize_config_dir

from cosmos_hydra import config as schema
from cosmos_hydra.config import Config, Precision
from cosmos_hydra.data.clips import latent_shape
from cosmos_hydra.engines.torch.attention import set_attention
from cosmos_hydra.engines.torch.device import pick_device
from cosmos_hydra.engines.torch.kernels import effective_attention, kernel_of
from cosmos_hydra.engines.torch.precision import autocast_for
from cosmos_hydra.models.transformer import Denoiser, build_transformer
from cosmos_hydra.overrides import conf_folder


def build(config: Config, device: torch.device) -> Denoiser:
    """Return a network whose layers keep the size of what goes through them."""
    with torch.device("meta"):
        transformer = build_transformer(config.model)
    transformer.to_empty(device=device)
    for parameter in transformer.parameters():
        if parameter.dim() == 1:
            parameter.data.normal_(1, 0.1)
        else:
            parameter.data.normal_(0, parameter.shape[1] ** -0.5)
    return Denoiser(transformer).requires_grad_(False).eval()


def run(
    denoiser: Denoiser,
    config: Config,
    device: torch.device,
    precision: Precision,
    sigmas: list[float],
) -> tuple[torch.Tensor, float]:
    """Return the outputs at all noise levels, and seconds of one pass."""
    model = config.model
    config.parallel.precision = precision
    set_attention(denoiser.transformer, kernel_of(effective_attention(config, device)))
    generator = torch.Generator(device).manual_seed(0)
    latent_BCFHW = torch.randn(
        1, *latent_shape(config.data, model.latent_channels), generator=generator, device=device
    )
    shape = (1, model.text_tokens, model.text_dim)
    text_BTD = torch.randn(shape, generator=generator, device=device)
    padding_B1HW = torch.zeros(1, 1, *latent_BCFHW.shape[-2:], device=device)
    outputs, spent_s = [], 0.0
    for sigma in sigmas:
        c_noise_B = torch.full((1,), sigma, device=device).log() / 4
        began_s = now_s(device)
        with autocast_for(precision, device)():
            output = denoiser(latent_BCFHW, c_noise_B, text_BTD, padding_B1HW, 24.0)
        spent_s = now_s(device) - began_s  # of the last, when all is warm
        outputs.append(output.float())
    return torch.stack(outputs), spent_s


def now_s(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.05, 1.0, 20.0])
    options, typed = parser.parse_known_args()
    schema.register()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        fixed = ["stage=post_train", "data.source=none", "model.weights.from_scratch=true"]
        config = schema.load(compose("config", [*fixed, *typed]))
    device = pick_device(config.engine.device)
    torch.manual_seed(0)
    denoiser = build(config, device)
    wanted, spent_s = run(denoiser, config, device, Precision.fp32, options.sigmas)
    print(f"float32: {spent_s:.2f} s")
    scale = wanted.pow(2).mean(dim=(1, 2, 3, 4, 5)).sqrt()
    for name in ("autocast", "bfloat16 weights"):
        if name != "autocast":  # as generation holds them
            for part_name, part in denoiser.transformer.named_children():
                if part_name != "learnable_pos_embed":
                    part.to(torch.bfloat16)
        found, spent_s = run(denoiser, config, device, Precision.bf16, options.sigmas)
        error = (found - wanted).pow(2).mean(dim=(1, 2, 3, 4, 5)).sqrt() / scale
        largest = (found - wanted).abs().amax(dim=(1, 2, 3, 4, 5)) / wanted.abs().amax(
            dim=(1, 2, 3, 4, 5)
        )
        shown = ", ".join(
            f"sigma {sigma:g}: {rms:.1e} rms, {most:.1e} largest"
            for sigma, rms, most in zip(
                options.sigmas, error.tolist(), largest.tolist(), strict=True
            )
        )
        print(f"{name}: {spent_s:.2f} s; relative error at {shown}")


if __name__ == "__main__":
    main()
