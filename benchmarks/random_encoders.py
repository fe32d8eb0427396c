"""Full-size tokenizer and text encoder with random weights, and what is measured of a device."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from cosmos_hydra.config import DataConfig
from cosmos_hydra.models.fast_autoencoder import Way, speed_up
from cosmos_hydra.models.text import T5TextEncoder
from cosmos_hydra.models.tokenizer import CosmosTokenizer

NOT_KERNELS = ("Memcpy", "Memset", "Torch-Compiled Region", "## Call")
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
