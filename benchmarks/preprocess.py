"""Samples a second of preprocessing on one GPU, beside the work of NVIDIA's old script.

    python benchmarks/preprocess.py --videos folder --clips 96 --old-clips 24

Full-size autoencoder and a T5-11B-shaped encoder with random weights, chunks of 121 frames at
704x1280. Loading is not counted, and compiling is told apart. The share of time that the GPU is
busy is that in which at least one kernel runs, from CUPTI through torch.profiler. `--tiny`
rehearses on a CPU.
"""

import argparse
import os
import random
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import torch
from encode_variants import (
    COMPILED,
    FAST,
    VARIANTS,
    compare_fits,
    compare_variants,
    measure_decode,
    profile_encode,
)
from old_script import Plan, run_old_script
from random_encoders import PROMPT_IDS, Bench, Busy, RandomT5

from cosmos_hydra.config import DataConfig, SampleFormat
from cosmos_hydra.data.ahead import decode_together
from cosmos_hydra.data.clips import Clip
from cosmos_hydra.data.encode import encode_clips
from cosmos_hydra.data.layout import Layout
from cosmos_hydra.data.prepare import DECODED_TOGETHER_BYTES
from cosmos_hydra.data.spent import Spent
from cosmos_hydra.data.video import decode, probe
from cosmos_hydra.data.writer import SampleWriter, Texts

OLD_CHUNKS = 500  # of each video, in the guide


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
    layout = Layout(out, SampleFormat.safetensors)
    writer, embeddings = SampleWriter(layout), Texts(layout, {"kind": "random"})
    embeddings.write("one caption for all", text)
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
        with spent.on(f"decode, in {workers} processes"):
            return decode(Path(video), indices)

    def most_frames(video: str) -> int:
        info = probed[video]
        return DECODED_TOGETHER_BYTES // (3 * info.height * info.width)

    probed = {str(video): probe(video) for video in plan}

    def write(clip: Clip, box: Any, latent: torch.Tensor) -> None:
        info = {"start_frame": clip.start_frame, "video_path": clip.video}
        writer.write(names[clip], info, latent, embeddings.path("one caption for all"))

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
