"""Seconds of one video at full size on one GPU: guided denoising, decoding, writing the mp4.

    python benchmarks/generate_video.py --out video.jsonl model=7b

The product's own sampling (both branches of guidance as one batch) and decoding, with random
weights of the released architectures. `apart` is the same with one branch after the other, for a
few steps. Every step is a line, a case a JSON line. `--tiny` has a tokenizer of few channels.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mesh_step import config_of, fill_at_random, synchronised_s
from post_train_step import matmul_tflop_per_s
from random_encoders import Bench

from cosmos_hydra.config import Config, Precision, Sampler
from cosmos_hydra.data.clips import latent_shape
from cosmos_hydra.data.video import to_pixels, write_mp4
from cosmos_hydra.diffusion.generation import Request, generate_latent
from cosmos_hydra.engines.torch.attention import set_attention
from cosmos_hydra.engines.torch.degrees import token_count
from cosmos_hydra.engines.torch.device import pick_device
from cosmos_hydra.engines.torch.kernels import effective_attention, kernel_of
from cosmos_hydra.engines.torch.precision import autocast_for
from cosmos_hydra.models.size import forward_flop
from cosmos_hydra.models.transformer import Denoiser, build_transformer

Row = dict[str, Any]


def random_denoiser(config: Config, device: torch.device) -> Denoiser:
    """Return the denoiser as generation loads it, with random weights."""
    with torch.device("meta"):
        transformer = build_transformer(config.model)
    if device.type == "cuda":
        for name, part in transformer.named_children():
            if name != "learnable_pos_embed":
                part.to(torch.bfloat16)
    transformer.to_empty(device=device)
    fill_at_random(transformer, None)
    set_attention(transformer, kernel_of(effective_attention(config, device, is_alone=True)))
    return Denoiser(transformer).requires_grad_(False).eval()


def apart(denoiser: Denoiser) -> Any:
    """Return the same with one forward pass for each of a batch."""

    def one_by_one(*inputs: Any) -> torch.Tensor:
        *tensors, fps = inputs
        batch = zip(*(tensor.split(1) for tensor in tensors), strict=True)
        return torch.cat([denoiser(*one, fps) for one in batch])

    return one_by_one


def request_of(config: Config, steps: int) -> Request:
    """Return a request with a random text."""
    model = config.model
    return Request(
        text_TD=torch.randn(model.text_tokens, model.text_dim),
        negative_TD=None,
        shape_CFHW=latent_shape(config.data, model.latent_channels),
        fps=24.0,
        seed=0,
        steps=steps,
        guidance=7.0,
        sampler=config.generate.sampler,
    )


def peak_gb(device: torch.device) -> float | None:
    """Return the most memory allocated since the last call, and start again."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    torch.cuda.reset_peak_memory_stats(device)
    return round(peak, 1)


def denoised(name: str, network: Any, config: Config, device: torch.device, steps: int) -> Any:
    """Return a latent and what making it took."""
    autocast = autocast_for(Precision.auto, device)
    sigma_data = config.model.objective.sigma_data
    request = request_of(config, steps)
    one_pass = replace(request, steps=1, sampler=Sampler.euler)
    generate_latent(network, one_pass, sigma_data, device, autocast)
    times_s: list[float] = [synchronised_s(device)]

    def on_step() -> None:
        times_s.append(synchronised_s(device))
        print(f"{name} step {len(times_s) - 1}: {times_s[-1] - times_s[-2]:.3f} s", flush=True)

    peak_gb(device)
    latent_CFHW = generate_latent(network, request, sigma_data, device, autocast, on_step)
    taken_s = synchronised_s(device) - times_s[0]
    step_s = statistics.median(b - a for a, b in itertools.pairwise(times_s))
    # two forward passes a step; what comes after the last step is none
    tflop = 2 * forward_flop(config.model, token_count(config)) / 1e12
    return latent_CFHW, {
        "case": name,
        "steps": steps,
        "denoise_s": round(taken_s, 2),
        "step_s": round(step_s, 3),
        "tflop_per_s": tflop / step_s,
        "denoise_gb": peak_gb(device),
    }


def main() -> None:
    """Measure both cases, then decoding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=35)
    parser.add_argument("--apart-steps", type=int, default=2)
    parser.add_argument("--matmul-size", type=int, default=8192)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("generate_video.jsonl"))
    parser.add_argument("overrides", nargs="*")
    typed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(Path(folder), typed.overrides)
        device = pick_device(config.engine.device)
        rate = matmul_tflop_per_s(device, typed.matmul_size)
        denoiser = random_denoiser(config, device)
        _, second = denoised("apart", apart(denoiser), config, device, typed.apart_steps)
        latent_CFHW, row = denoised("batched", denoiser, config, device, typed.steps)
        bench = Bench(device, config.data, config.model.text_tokens, typed.tiny)
        tokenizer = bench.tokenizer("eager")
        # random weights leave numbers that no tokenizer has seen
        latent_1CFHW = torch.randn_like(latent_CFHW)[None]
        tokenizer.decode(latent_1CFHW)
        peak_gb(device)
        began_s = synchronised_s(device)
        frames_FHWC = to_pixels(tokenizer.decode(latent_1CFHW)[0])
        row["decode_s"] = round(synchronised_s(device) - began_s, 2)
        row["decode_gb"] = peak_gb(device)
        began_s = time.perf_counter()
        write_mp4(Path(folder) / "video.mp4", frames_FHWC, 24.0)
        row["write_s"] = round(time.perf_counter() - began_s, 2)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    for each in (second, row):
        each |= {"share_of_matmul": each["tflop_per_s"] / rate, "matmul_tflop_per_s": rate}
        line = json.dumps({**each, "device": name, "torch": torch.__version__})
        with typed.out.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


if __name__ == "__main__":
    main()
