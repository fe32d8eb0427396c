"""What a user of the toy waits for on a CPU: starts of the program, a training step, a video.

    python benchmarks/toy.py

Prints a Markdown table and one JSON line, in under a minute and a half on two cores. Samples are
made up, of the quickstart's size, and so is the tokenizer. Starts are processes of their own, the
fastest of --repeats, since other work on the machine only ever slows them down.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from generate_full_size import decoded, sampled
from mesh_step import config_of, make_samples
from post_train_step import our_row

from cosmos_hydra.config import Config

TOY = (
    *("model=tiny", "data.frames=17", "data.height=96", "data.width=128"),
    *("trainer.global_batch_size=4", "trainer.micro_batch_size=4", "engine.device=cpu"),
)
POLL_S = 0.01
LIMIT_S = 60.0


def process_s(*arguments: str) -> float:
    """Return seconds that a Python process takes from start to end."""
    began_s = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began_s


def first_step_s(config: Config, folder: Path) -> float:
    """Return seconds from the start of a training process until its first step is recorded."""
    run = folder / "started"
    shutil.rmtree(run, ignore_errors=True)
    typed = ("stage=post_train", *TOY, f"data.path={config.data.path}", f"hydra.run.dir={run}")
    more = ("trainer.max_steps=100000", "trainer.validate_every=0", "trainer.preview_every=0")
    rows, command = run / "metrics.jsonl", [sys.executable, "-m", "cosmos_hydra", *typed, *more]
    began_s = time.perf_counter()
    with (
        (folder / "started.log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            while not (rows.is_file() and rows.stat().st_size):
                spent_s = time.perf_counter() - began_s
                if process.poll() is not None or spent_s > LIMIT_S:
                    raise SystemExit(Path(log.name).read_text())
                time.sleep(POLL_S)
            return time.perf_counter() - began_s
        finally:
            process.kill()


def step_s(config: Config, folder: Path, steps: int) -> float:
    """Return the median of training steps, without the first."""
    return float(our_row(config, folder, torch.device("cpu"), steps)["step_s"])


def video_s(config: Config, folder: Path, steps: int) -> float:
    """Return seconds from a text embedding to a file."""
    cpu = torch.device("cpu")
    row, latent_CFHW = sampled(config, "batched", steps, cpu)
    made = decoded(config, latent_CFHW, folder, cpu)
    return float(row["denoising_s"] + made["decode_first_s"] + made["mp4_s"])


def main() -> None:
    """Measure one thing after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="of process starts")
    parser.add_argument("--steps", type=int, default=20, help="of training that are measured")
    parser.add_argument("--sampling-steps", type=int, default=35)
    typed = parser.parse_args()
    torch.manual_seed(0)
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        config = config_of(folder, list(TOY))
        make_samples(config)
        program = ("-m", "cosmos_hydra")
        measured: dict[str, Callable[[], float]] = {
            "`cosmos-hydra --help`": lambda: process_s(*program, "--help"),
            "`cosmos-hydra --cfg job`": lambda: process_s(*program, "--cfg", "job"),
            "`import torch` alone": lambda: process_s("-c", "import torch"),
            "start of training until its first step": lambda: first_step_s(config, folder),
        }
        found = {
            name: min(measure() for _ in range(typed.repeats)) for name, measure in measured.items()
        }
        with contextlib.redirect_stdout(io.StringIO()):
            name = f"a training step, batch 4 (median of {typed.steps})"
            found[name] = step_s(config, folder, typed.steps)
            name = f"a video: {typed.sampling_steps} steps with guidance, decoding, writing"
            found[name] = video_s(config, folder, typed.sampling_steps)
    print("| what | s |\n|---|---|")
    for name, spent_s in found.items():
        print(f"| {name} | {spent_s:.3g} |")
    facts = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(before, 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps({**{name: round(s, 4) for name, s in found.items()}, **facts}))


if __name__ == "__main__":
    main()
