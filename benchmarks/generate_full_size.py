"""How long one video takes on one GPU: the steps with guidance, decoding, writing the file.

    python benchmarks/generate_full_size.py --branches compiled,batched,sequential

One JSON line a case; --set KEY=VALUE is for all (default: model=7b). `compiled` is what generation
does at this size: both branches of guidance in one pass, blocks compiled; `batched` is the same not
compiled; `sequential` has one pass after the other. The first case has all --steps and decodes, the
others a few steps. Weights are random, the tokenizer's too, so that the file is noise, which takes
longest to write.
"""

import argparse
import gc
import itertools
import os
import statistics
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from mesh_step import config_of, fill_at_random, synchronised_s
from post_train_step import matmul_tflop_per_s, write_line
from random_encoders import Bench

from cosmos_hydra.config import Config, Precision, Stage, TokenizerKind
from cosmos_hydra.data.clips import latent_shape
from cosmos_hydra.data.video import to_pixels, write_mp4
from cosmos_hydra.diffusion.generation import Request, generate_latent
from cosmos_hydra.engines.torch.attention import set_attention
from cosmos_hydra.engines.torch.degrees import token_count
from cosmos_hydra.engines.torch.device import pick_device
from cosmos_hydra.engines.torch.fit import estimate
from cosmos_hydra.engines.torch.kernels import effective_attention, kernel_of
from cosmos_hydra.engines.torch.precision import autocast_for, effective_precision
from cosmos_hydra.engines.torch.shard import compile_blocks
from cosmos_hydra.models.fast_autoencoder import EAGER
from cosmos_hydra.models.size import forward_flop
from cosmos_hydra.models.tokenizer import Tokenizer
from cosmos_hydra.models.toy_tokenizer import ToyTokenizer
from cosmos_hydra.models.transformer import Denoiser, build_transformer

CASES = ("compiled", "batched", "sequential")
FPS = 24.0
Row = dict[str, Any]


def denoiser_of(config: Config, device: torch.device) -> Denoiser:
    """Return what generation samples with, but for its weights, which are drawn on the device."""
    with torch.device("meta"):
        transformer = build_transformer(config.model)
    if effective_precision(config.parallel.precision, device) is Precision.bf16:
        for name, part in transformer.named_children():
            if name != "learnable_pos_embed":
                part.to(torch.bfloat16)
    transformer.to_empty(device=device)
    fill_at_random(transformer, None)
    set_attention(transformer, kernel_of(effective_attention(config, device, is_alone=True)))
    return Denoiser(transformer).requires_grad_(False).eval()


def one_by_one(denoiser: Denoiser) -> Callable[..., torch.Tensor]:
    """Return the network with a pass for each element of the batch."""

    def network(*inputs: Any) -> torch.Tensor:
        *tensors, fps = inputs
        parts = zip(*(tensor.split(1) for tensor in tensors), strict=True)
        return torch.cat([denoiser(*part, fps) for part in parts])

    return network


def sampled(
    config: Config, case: str, steps: int, device: torch.device
) -> tuple[Row, torch.Tensor]:
    """Return times of the passes of one video, and its latent."""
    model, generate = config.model, config.generate
    torch.manual_seed(0)
    denoiser = denoiser_of(config, device)
    if case == "compiled":
        compile_blocks(denoiser.transformer)
    request = Request(
        text_TD=torch.randn(model.text_tokens, model.text_dim),
        negative_TD=None,
        shape_CFHW=latent_shape(config.data, model.latent_channels),
        fps=FPS,
        seed=1,
        steps=steps,
        guidance=generate.guidance,
        sampler=generate.sampler,
    )
    reset_peak(device)
    ended_s = [synchronised_s(device)]

    def note() -> None:
        ended_s.append(synchronised_s(device))
        print(f"{case} {len(ended_s) - 1}: {ended_s[-1] - ended_s[-2]:.3f} s", flush=True)

    latent_CFHW = generate_latent(
        one_by_one(denoiser) if case == "sequential" else denoiser,
        request,
        model.objective.sigma_data,
        device,
        autocast_for(config.parallel.precision, device),
        on_step=note,
    )
    spent_s = [end - start for start, end in itertools.pairwise(ended_s)]
    branches = 2 if generate.guidance else 1
    step_s = round(statistics.median(spent_s[1:]), 4)
    tflop = branches * forward_flop(model, token_count(config)) / 1e12
    row = {
        "steps": steps,
        "evaluations": len(spent_s),  # RES-2ab has one more than steps
        "passes_a_step": branches,
        "denoising_s": round(ended_s[-1] - ended_s[0], 3),
        "first_step_s": round(spent_s[0], 3),
        "step_s": step_s,
        "model_tflop_a_step": tflop,
        "tflop_per_s": tflop / step_s,
        "denoising_peak_gb": peak_gb(device),
    }
    return row, latent_CFHW


def decoded(config: Config, latent: torch.Tensor, folder: Path, device: torch.device) -> Row:
    """Return what it takes to make a file of a latent; the first decoding is the usual one.

    The peak is without the denoiser, which generation keeps for the next video.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    tokenizer, spent_s = tokenizer_of(config, device), []
    reset_peak(device)
    for _ in range(2):
        began_s = synchronised_s(device)
        video_BCFHW = tokenizer.decode(latent[None])
        spent_s.append(round(synchronised_s(device) - began_s, 3))
    row = {"decode_first_s": spent_s[0], "decode_s": spent_s[1], "decode_peak_gb": peak_gb(device)}
    frames_FHWC = to_pixels(video_BCFHW[0])
    began_s = synchronised_s(device)
    write_mp4(folder / "random.mp4", frames_FHWC, FPS)
    return {**row, "frames": len(frames_FHWC), "mp4_s": round(synchronised_s(device) - began_s, 3)}


def tokenizer_of(config: Config, device: torch.device) -> Tokenizer:
    """Return the configured tokenizer as generation runs it, with random weights."""
    if config.model.tokenizer.kind is TokenizerKind.toy:
        return ToyTokenizer.fit([torch.rand(3, 9, 32, 32) * 2 - 1], seed=0)
    bench = Bench(device, config.data, config.model.text_tokens, is_tiny=device.type == "cpu")
    return bench.tokenizer("+".join(way.name for way in EAGER))


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float | None:
    """Return the most memory in use since the last reset, weights included."""
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 1e9, 1)


def measured(case: str, number: int, typed: argparse.Namespace, device: torch.device) -> Row:
    """Return the row of a case, or what went wrong with it."""
    config = config_of(typed.folder, typed.overrides or ["model=7b"])
    steps = typed.steps_of_others if number else typed.steps
    row: Row = {"case": case, "tokens": token_count(config)}
    row["attention"] = effective_attention(config, device, is_alone=True).name
    try:
        found, latent_CFHW = sampled(config, case, steps, device)
        row |= {**found, "share_of_matmul": found["tflop_per_s"] / typed.matmul}
        row |= {"matmul_tflop_per_s": typed.matmul}
        row["estimate_gb"] = round(estimate(config, device, Stage.generate).total_gb, 1)
        if number == 0:
            row |= decoded(config, latent_CFHW, typed.folder, device)
    except Exception as error:  # noqa: BLE001 (the other cases still count)
        traceback.print_exc()
        row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
    if device.type == "cuda":
        row["device"] = torch.cuda.get_device_name(device)
    return row


def main() -> None:
    """Measure the named cases one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--branches", default="compiled,batched", help=f"of {','.join(CASES)}")
    parser.add_argument("--steps", type=int, default=35, help="of the first case")
    parser.add_argument("--steps-of-others", type=int, default=5)
    parser.add_argument("--matmul-size", type=int, default=8192)
    parser.add_argument("--folder", type=Path, default=Path("generate_full_size"))
    parser.add_argument("--out", type=Path, default=Path("generate_full_size.jsonl"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    typed = parser.parse_args()
    cases = typed.branches.split(",")
    if unknown := [case for case in cases if case not in CASES]:
        parser.error(f"{', '.join(unknown)}: no such case; use some of {','.join(CASES)}")
    typed.folder.mkdir(parents=True, exist_ok=True)
    device = pick_device(config_of(typed.folder, typed.overrides or ["model=7b"]).engine.device)
    typed.matmul = round(matmul_tflop_per_s(device, typed.matmul_size), 4)
    print(f"bf16 matrix product {typed.matmul_size}^3: {typed.matmul:.4g} TFLOP/s", flush=True)
    for number, case in enumerate(cases):
        write_line(typed.out, measured(case, number, typed, device))
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
