"""Samples a second of preprocessing on one GPU, beside the work of NVIDIA's old script.

    python benchmarks/preprocess.py --videos folder --clips 96 --old-clips 24

Full-size autoencoder and a T5-11B-shaped encoder with random weights, chunks of 121 frames at
704x1280. Loading is not counted, and compiling is told apart. The share of time that the GPU is
busy is that in which at least one kernel runs, from CUPTI through torch.profiler. `--tiny`
rehearses on a CPU.
"""

import argparse
import gc
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from old_script import Plan, run_old_script

from cosmos_hydra.config import DataConfig, Fit, SampleFormat
from cosmos_hydra.data.clips import Clip
from cosmos_hydra.data.encode import Spent, decode_together, encode_clips
from cosmos_hydra.data.prepare import DECODED_TOGETHER_BYTES
from cosmos_hydra.data.store import Layout
from cosmos_hydra.data.video import decode, fit_frames, probe
from cosmos_hydra.data.writer import SampleWriter
from cosmos_hydra.models.fast_autoencoder import Way, speed_up
from cosmos_hydra.models.text import T5TextEncoder
from cosmos_hydra.models.tokenizer import CosmosTokenizer

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
    f"{COMPILED}+tuned",
)
NOT_KERNELS = ("Memcpy", "Memset", "Torch-Compiled Region", "## Call")
OLD_CHUNKS = 500
PROMPT_IDS = [*range(3, 14), 1]  # "A video of sks teal robot." and the end token
# t5-11b
T5 = {"vocab_size": 32128, "d_model": 1024, "d_kv": 128, "d_ff": 65536, "num_layers": 24}
TINY_T5 = {"vocab_size": 32, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2}
TINY_WIDTHS = {
    "encoder_block_out_channels": (8, 8, 16, 16),
    "decode_block_out_channels": (8, 16, 16, 16),
    "num_layers": 1,
}


@dataclass(frozen=True)
class Bench:
    """What is measured, on what."""

    device: torch.device
    data: DataConfig
    tokens: int
    is_tiny: bool

    @property
    def dtype(self) -> torch.dtype:
        """Return what our tokenizer and text encoder compute in."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def now_s(self) -> float:
        """Return the time when the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def peak_gib(self) -> float:
        """Return the most memory in use since the last call, and start again."""
        if self.device.type != "cuda":
            return float("nan")
        peak = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return peak

    def clear(self) -> None:
        """Give back what nobody holds any more."""
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()
        self.peak_gib()

    def tokenizer(self, variant: str, dtype: torch.dtype | None = None) -> CosmosTokenizer:
        """Return our tokenizer with the released architecture and random weights, always these."""
        ways = [] if variant == "eager" else [Way[name] for name in variant.split("+")]
        tokenizer = CosmosTokenizer(Path("random"), self.device, ways)
        tokenizer.dtype = dtype or self.dtype
        torch.manual_seed(0)
        with torch.device(self.device):
            made = diffusers.AutoencoderKLCosmos(**(TINY_WIDTHS if self.is_tiny else {}))
        made = made.to(self.device, tokenizer.dtype).requires_grad_(False).eval()
        speed_up(made, ways)
        tokenizer.autoencoder = made
        return tokenizer

    def text_encoder(self, dtype: torch.dtype) -> Any:
        """Return a T5 encoder with random weights."""
        from transformers import T5Config, T5EncoderModel

        sizes = {**TINY_T5, "num_heads": 4} if self.is_tiny else {**T5, "num_heads": 128}
        with torch.device("meta"):
            made = T5EncoderModel(T5Config(**sizes, feed_forward_proj="relu"))
        made = made.to(dtype).to_empty(device=self.device)
        made.tie_weights()
        for parameter in made.parameters():
            parameter.data.normal_(0, parameter.shape[-1] ** -0.5)
        return made.requires_grad_(False).eval()


class RandomT5(T5TextEncoder):
    """Our text encoder around a model that is there already."""

    def __init__(self, bench: Bench) -> None:
        self.num_tokens, self.device = bench.tokens, bench.device
        self.at_once, self.padded_to = 16, 64
        self.tokenize = lambda caption: PROMPT_IDS
        self.encoder = bench.text_encoder(bench.dtype)


class Busy:
    """The share of a stretch of time in which at least one kernel runs."""

    def __init__(self) -> None:
        self.share = self.wall_s = float("nan")

    @contextmanager
    def watch(self, bench: Bench) -> Iterator[None]:
        """Profile the block, where there is a GPU."""
        if bench.device.type != "cuda":
            began_s = bench.now_s()
            yield
            self.wall_s = bench.now_s() - began_s
            return
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            began_s = bench.now_s()
            yield
            self.wall_s = bench.now_s() - began_s
        kernels = sorted(
            (event.start_ns(), event.start_ns() + event.duration_ns())
            for event in profiler.profiler.kineto_results.events()
            if event.device_type() == torch.autograd.DeviceType.CUDA
            and not event.name().startswith(NOT_KERNELS)
        )
        busy_ns = end = 0
        for start, stop in kernels:
            busy_ns += max(0, stop - max(start, end))
            end = max(end, stop)
        self.share = busy_ns / 1e9 / self.wall_s


def plan_of(videos: list[Path], clips: int, frames: int) -> Plan:
    """Return as many seeded windows of each video."""
    generator = random.Random(0)
    return {
        video: [
            generator.randint(0, probe(video).num_frames - frames)
            for _ in range(clips // len(videos))
        ]
        for video in videos
    }


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


def measure_old(bench: Bench, plan: Plan, out: Path) -> tuple[Busy, dict[str, float], float]:
    """Run the old script's work, warmed up."""
    autoencoder = bench.tokenizer("eager").autoencoder
    text_encoder = bench.text_encoder(torch.float32)
    data = bench.data
    size = (data.frames, data.height, data.width, bench.tokens)
    arguments = (PROMPT_IDS, autoencoder, text_encoder, bench.device, size, out)
    first = next(iter(plan))
    run_old_script({first: plan[first][:1]}, *arguments)
    bench.peak_gib()
    busy = Busy()
    with busy.watch(bench):
        spent = run_old_script(plan, *arguments)
    return busy, spent, bench.peak_gib()


def measure_ours(
    bench: Bench, plan: Plan, out: Path, variant: str, workers: int
) -> tuple[Busy, dict[str, float], float, float]:
    """Run our pipeline, warmed up; the last number is what warming up took, seconds."""
    text_encoder = RandomT5(bench)
    text_encoder.encode("warm up")
    text_busy = Busy()
    with text_busy.watch(bench):
        texts = dict(text_encoder.encode_all(["one caption for all"]))
    text = texts["one caption for all"]
    del text_encoder
    peak_gib = bench.peak_gib()
    bench.clear()
    tokenizer = bench.tokenizer(variant)
    data = bench.data
    writer = SampleWriter(Layout(out, SampleFormat.safetensors))
    clips = [
        Clip(str(video), "train", start, tuple(range(start, start + data.frames)), 24.0)
        for video, starts in plan.items()
        for start in sorted(starts)
    ]
    names = {clip: str(number) for number, clip in enumerate(clips)}
    began_s = bench.now_s()
    for _ in range(2):
        shape = (1, 3, data.frames, data.height, data.width)
        pixels = torch.zeros(shape, dtype=torch.uint8, device=bench.device)
        tokenizer.encode(pixels)
    warm_up_s = bench.now_s() - began_s
    spent, busy = Spent(), Busy()

    def read(video: str, indices: list[int]) -> torch.Tensor:
        with spent.on(f"decode, in {workers} threads"):
            return decode(Path(video), indices)

    def most_frames(video: str) -> int:
        info = probed[video]
        return DECODED_TOGETHER_BYTES // (3 * info.height * info.width)

    probed = {str(video): probe(video) for video in plan}

    def write(clip: Clip, box: Any, latent: torch.Tensor) -> None:
        info = {"start_frame": clip.start_frame, "video_path": clip.video}
        writer.write(names[clip], info, latent, text)

    with busy.watch(bench), ThreadPoolExecutor(workers) as decoders:
        decoded = decode_together(clips, read, most_frames, decoders, workers)
        for _ in encode_clips(decoded, tokenizer, data, bench.device, write, spent):
            pass
    spent.seconds["T5"] = text_busy.wall_s
    busy.share *= busy.wall_s / (busy.wall_s + text_busy.wall_s)
    busy.wall_s += text_busy.wall_s
    return busy, spent.seconds, max(peak_gib, bench.peak_gib()), warm_up_s


def print_run(
    name: str, clips: int, busy: Busy, spent: dict[str, float], peak_gib: float, note: str = ""
) -> float:
    """Print one side of the comparison and return its clips a second."""
    rate = clips / busy.wall_s
    print(
        f"\n{name}: {clips} clips in {busy.wall_s:.1f} s = {rate:.2f} clips/s, GPU busy "
        f"{100 * busy.share:.0f} %, peak {peak_gib:.1f} GiB{note}"
    )
    for stage, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"  {stage:32} {1000 * seconds / clips:8.1f} ms a clip")
    return rate


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, required=True, help="folder of mp4 files")
    parser.add_argument("--clips", type=int, default=96, help="chunks for ours, of all videos")
    parser.add_argument("--old-clips", type=int, default=24, help="chunks for the old script")
    parser.add_argument("--variants", nargs="*", default=VARIANTS, help="none: skip the encoder")
    parser.add_argument("--ours", nargs="*", default=[FAST, COMPILED])
    parser.add_argument("--decode", nargs="*", default=["eager", FAST])
    parser.add_argument("--batches", type=int, nargs="*", default=[1])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=(os.cpu_count() or 2) // 2)
    parser.add_argument("--profile", nargs="*", default=[], help="variants to list kernels of")
    parser.add_argument("--out", type=Path, help="where samples go; default: a temporary folder")
    parser.add_argument("--tiny", action="store_true")
    typed = parser.parse_args()
    diffusers.logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = DataConfig(name="robot", path="unused")
    if typed.tiny:
        data.frames, data.height, data.width = 9, 32, 48
    bench = Bench(device, data, 64 if typed.tiny else 512, typed.tiny)
    chip = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(
        f"{chip}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"cuDNN {torch.backends.cudnn.version()}"
    )
    videos = sorted(typed.videos.glob("*.mp4"))
    compare_fits(bench, videos[0])
    if typed.variants:
        compare_variants(bench, typed.variants, typed.batches, typed.repeats)
    for variant in typed.profile:
        profile_encode(bench, variant)
        bench.clear()
    if typed.decode:
        measure_decode(bench, typed.decode)
    with tempfile.TemporaryDirectory(dir=typed.out) as folder:
        out = Path(folder)
        old_rate = float("nan")
        if typed.old_clips:
            plan = plan_of(videos, typed.old_clips, data.frames)
            clips = sum(map(len, plan.values()))
            busy, spent, peak_gib = measure_old(bench, plan, out)
            bench.clear()
            print_run("old script", clips, busy, spent, peak_gib)
            # its guide takes so many chunks of a video, which is decoded once
            decode_s = spent["decode the whole video"]
            old_rate = clips / (busy.wall_s - decode_s * (1 - clips / len(plan) / OLD_CHUNKS))
            print(f"  with {OLD_CHUNKS} chunks of each video: {old_rate:.2f} clips/s")
        plan = plan_of(videos, typed.clips, data.frames)
        clips = sum(map(len, plan.values()))
        for number, variant in enumerate(typed.ours):
            *run, warm_up_s = measure_ours(bench, plan, out / str(number), variant, typed.workers)
            note = f", warm-up {warm_up_s:.1f} s not counted"
            rate = print_run(f"ours, {variant}", clips, *run, note)
            print(f"  {rate / old_rate:.1f}x the old script with those")
            bench.clear()


if __name__ == "__main__":
    main()
