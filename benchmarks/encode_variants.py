"""The tokenizer by itself: time, memory, deviation and kernels of each way to run it."""

import statistics
from pathlib import Path

import torch
from random_encoders import Bench

from cosmos_hydra.config import Fit
from cosmos_hydra.data.video import decode, fit_frames

FAST = "channels_last+flat+matmul+patches"
COMPILED = f"{FAST}+norms+compile"
VARIANTS = (
    "eager",
    "channels_last",
    "patches",
    "matmul",
    "flat+channels_last",
    FAST,
    "compile",
    f"{FAST}+compile",
    COMPILED,
)


def compare_variants(bench: Bench, variants: list[str], batches: list[int], repeats: int) -> None:
    """Print time, memory and deviation of the encoder in each variant."""
    data = bench.data
    shape = (1, 3, data.frames, data.height, data.width)
    coarse = torch.rand(1, 3, 9, 22, 40, generator=torch.Generator().manual_seed(0))
    video = torch.nn.functional.interpolate(coarse.to(bench.device), shape[2:], mode="trilinear")
    video = (255 * video).to(torch.uint8)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = bench.tokenizer("eager", torch.float32).encode(video)
    scale = exact.std()
    print(f"\nencode {shape} in {bench.dtype}; rms error: to float32, over its deviation")
    print(f"{'variant':48} batch  first s   ms/clip    GiB  rms error")
    for variant in variants:
        for batch in batches:
            try:
                _print_variant(bench, variant, video, batch, repeats, exact, scale)
            except torch.OutOfMemoryError:
                print(f"{variant:48} {batch:5}  out of memory")
            bench.clear()


def _print_variant(
    bench: Bench,
    variant: str,
    video: torch.Tensor,
    batch: int,
    repeats: int,
    exact: torch.Tensor,
    scale: torch.Tensor,
) -> None:
    encode = bench.tokenizer(variant).encode
    bench.peak_gib()
    batch_BCFHW = video.expand(batch, -1, -1, -1, -1).contiguous()
    began_s = bench.now_s()
    latent = encode(batch_BCFHW)
    first_s = bench.now_s() - began_s
    error = ((latent[:1] - exact).pow(2).mean().sqrt() / scale).item()
    times_ms = []
    for _ in range(repeats):
        began_s = bench.now_s()
        encode(batch_BCFHW)
        times_ms.append(1000 * (bench.now_s() - began_s) / batch)
    middle_ms = statistics.median(times_ms)
    print(
        f"{variant:48} {batch:5} {first_s:8.1f} {middle_ms:9.1f} {bench.peak_gib():6.1f} "
        f"{error:10.1e}",
        flush=True,
    )


def profile_encode(bench: Bench, variant: str) -> None:
    """Print the kernels that one encode spends its time in."""
    from torch.profiler import ProfilerActivity, profile

    data, encode = bench.data, bench.tokenizer(variant).encode
    shape = (1, 3, data.frames, data.height, data.width)
    pixels = torch.zeros(shape, dtype=torch.uint8, device=bench.device)
    encode(pixels)
    encode(pixels)
    is_cuda = bench.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]) as seen:
        encode(pixels)
        bench.now_s()
    order = "self_cuda_time_total" if is_cuda else "self_cpu_time_total"
    print(f"\n{variant}")
    print(seen.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=110))


@torch.no_grad()
def measure_decode(bench: Bench, variants: list[str]) -> None:
    """Print time and memory of latent to video."""
    data = bench.data
    latent = torch.randn(
        1, 16, 1 + (data.frames - 1) // 8, data.height // 8, data.width // 8, device=bench.device
    ).to(bench.dtype)
    print(f"\ndecode latents {tuple(latent.shape)} in {bench.dtype}")
    for variant in variants:
        tokenizer = bench.tokenizer(variant)
        bench.peak_gib()
        spent_s = []
        for _ in range(2):
            began_s = bench.now_s()
            tokenizer.decode(latent)
            spent_s.append(bench.now_s() - began_s)
        print(
            f"{variant:48} first {spent_s[0]:.1f} s, then {spent_s[1]:.3f} s, "
            f"{bench.peak_gib():.1f} GiB",
            flush=True,
        )
        del tokenizer
        bench.clear()


def compare_fits(bench: Bench, video: Path) -> None:
    """Print how far the resize on the device is from that on the CPU."""
    frames = decode(video, [0, 1, 2])
    for fit in Fit:
        for height, width in ((bench.data.height, bench.data.width), (192, 320)):
            here, _ = fit_frames(frames, height, width, fit)
            there, _ = fit_frames(frames.to(bench.device), height, width, fit)
            apart = (here.int() - there.cpu().int()).abs()
            print(
                f"fit {fit.name} to {height}x{width}: largest difference to the CPU "
                f"{apart.max()} of 255, in {(apart > 0).float().mean():.1e} of the values"
            )
