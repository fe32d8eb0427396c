"""Seconds, memory and FLOP/s of a training step on one GPU, ours beside diffusers' plain loop.

    python benchmarks/post_train_step.py ours ours_flash4 plain_cudnn:3 plain:3 --out steps.jsonl

Rows by name, with a number of measured steps behind it or from --steps; --set KEY=VALUE is for all
of them (default: model=7b). Every row is a process, and a JSON line as it ends; a table comes last.
Ours is the trainer's own step on samples from disk, optimizer included; weights are random, and all
rows but `save` have the configured depth. The last measured step of a row is profiled.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from kernel_times import KernelTimes
from mesh_step import config_of, fill_at_random, make_samples, synchronised_s
from torch.nn.attention import SDPBackend, sdpa_kernel

from cosmos_hydra.config import Config, Stage
from cosmos_hydra.data.clips import latent_shape
from cosmos_hydra.data.store import open_store
from cosmos_hydra.engines.torch import state
from cosmos_hydra.engines.torch.degrees import token_count
from cosmos_hydra.engines.torch.device import pick_device
from cosmos_hydra.engines.torch.fit import estimate
from cosmos_hydra.engines.torch.mesh import join
from cosmos_hydra.engines.torch.saving import Saver
from cosmos_hydra.engines.torch.trainer import Trainer
from cosmos_hydra.models.size import forward_flop
from cosmos_hydra.models.transformer import build_transformer
from cosmos_hydra.tracking.record import Record

MLP, FLOAT8 = "parallel.recompute=save_mlp", "parallel.linears=float8"
CUDNN, FLASH4 = "parallel.attention=cudnn", "parallel.attention=flash4"
FAST = ("optim.state=bf16", "parallel.compile=true")
OURS = {
    "ours": (*FAST, MLP, CUDNN),
    "ours_float8": (*FAST, MLP, CUDNN, FLOAT8),
    "ours_flash4": (*FAST, MLP, FLASH4),
    "ours_flash4_float8": (*FAST, MLP, FLASH4, FLOAT8),
    "ours_flash4_except": (*FAST, MLP, FLASH4, "parallel.recompute_except=2"),
    "ours_save_attention": (*FAST, "parallel.recompute=save_attention", CUDNN),
    "ours_eager": ("optim.state=bf16", MLP, CUDNN),
    "ours_full": ("optim.state=fp32", "parallel.compile=true", "parallel.recompute=full"),
}
# which of PyTorch's kernels; None = that which it picks
PLAIN = {
    "plain": None,
    "plain_cudnn": SDPBackend.CUDNN_ATTENTION,
    "plain_flash": SDPBackend.FLASH_ATTENTION,
}
SAVE = (*FAST, "parallel.recompute=full", "model.num_layers=8")
ROWS = (*OURS, *PLAIN, "save")
SHOWN = (
    *("step_s", "clips_per_s", "tflop_per_s", "share_of_matmul"),
    *("allocated_gb", "used_gb", "data_wait_s", "first_step_s"),
)
Row = dict[str, Any]


def matmul_tflop_per_s(device: torch.device, size: int) -> float:
    """Return the rate of bf16 matrix products of `size` cubed, over about a second."""
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    count, began_s = 0, synchronised_s(device)
    while synchronised_s(device) - began_s < 1.5:
        if count == 0:
            began_s = synchronised_s(device)  # the first ones warm up
        for _ in range(50 if device.type == "cuda" else 1):
            torch.mm(a, b)
            count += 1
    return 2 * size**3 * count / (synchronised_s(device) - began_s) / 1e12


def step_facts(steps: Iterator[Callable[[], Row]], device: torch.device, count: int) -> Row:
    """Run a step to warm up and `count` more; return medians and the split of the last one."""
    rows: list[Row] = []
    began_s = synchronised_s(device)
    for number in range(count + 1):
        step = next(steps)
        waited_s = time.perf_counter() - began_s
        is_last = number == count
        profiling = KernelTimes() if is_last and device.type == "cuda" else nullcontext()
        with profiling as profiled:
            ready_s = time.perf_counter()
            row = step()
            step_s = waited_s + synchronised_s(device) - ready_s
        rows.append({"step_s": step_s, "data_wait_s": waited_s, **row})
        print(json.dumps(rows[-1]), flush=True)
        if number == 0 and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        began_s = synchronised_s(device)
    measured = rows[1:]
    facts: Row = {
        name: round(statistics.median(row[name] for row in measured), 4) for name in measured[0]
    }
    facts |= {"first_step_s": round(rows[0]["step_s"], 1), "steps": count}
    facts["all_step_s"] = [round(row["step_s"], 3) for row in measured]
    if profiled is not None:
        last = measured[-1]
        facts["split_s"] = profiled.split(last["step_s"], last["optimizer_s"])
    return facts


def our_row(config: Config, folder: Path, device: torch.device, count: int) -> Row:
    """Return what the trainer's own step takes."""
    ranks = join(config, device)
    (folder / "run").mkdir(exist_ok=True)
    trainer = Trainer(config, folder / "run", open_store(config.data.path), ranks)
    trainer.denoiser.train()
    waiting = trainer.loader().steps(0, count + 1)

    def steps() -> Iterator[Callable[[], Row]]:
        for number, batches in enumerate(waiting):

            def step(number: int = number, batches: Any = batches) -> Row:
                outcome = trainer.stepper.compute(number, batches)
                computed_s = synchronised_s(device)
                trainer.stepper.apply(outcome)
                applied_s = synchronised_s(device) - computed_s
                return {"optimizer_s": applied_s, "loss": outcome.loss}

            yield step

    facts = step_facts(steps(), device, count)
    waiting.close()
    expected = estimate(config, device, Stage.post_train)
    return {**facts, "estimate_gb": round(expected.total_gb, 1)}


def plain_row(config: Config, name: str, device: torch.device, count: int) -> Row:
    """Return what diffusers' model takes as it comes: bf16 weights, block checkpointing, AdamW."""
    model = config.model
    with torch.device("meta"):
        transformer = build_transformer(model).bfloat16()
    transformer.to_empty(device=device)
    fill_at_random(transformer, None)
    transformer.enable_gradient_checkpointing()
    transformer.train()
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=1e-6, fused=True)
    kernel: Callable[[], AbstractContextManager[Any]] = nullcontext
    if backend := PLAIN[name]:
        kernel = partial(sdpa_kernel, backend)
    C, *sizes = latent_shape(config.data, model.latent_channels)
    options = {"device": device, "dtype": torch.bfloat16}
    latent_BCFHW = torch.randn(1, C + 1, *sizes, **options)
    wanted_BCFHW = torch.randn(1, C, *sizes, **options)
    text_BTD = torch.randn(1, model.text_tokens, model.text_dim, **options)
    time_B = torch.full((1,), 0.3, **options)

    def step() -> Row:
        with kernel():
            out = transformer(latent_BCFHW, time_B, text_BTD, fps=24.0, return_dict=False)[0]
            (out.float() - wanted_BCFHW.float()).square().mean().backward()
        computed_s = synchronised_s(device)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"optimizer_s": synchronised_s(device) - computed_s}

    return step_facts(iter(lambda: step, None), device, count)


def save_row(config: Config, folder: Path, device: torch.device) -> Row:
    """Return for how long a checkpoint of a shallower model holds up training, and takes in all."""
    ranks = join(config, device)
    (folder / "saved").mkdir(exist_ok=True)
    trainer = Trainer(config, folder / "saved", open_store(config.data.path), ranks)
    trainer.denoiser.train()
    trainer.record = Record(config, trainer.run, 0, ranks.is_first)
    trainer.saver = Saver(trainer.run, ranks, config.model, 1, None)
    staging, loader = trainer.saver.staging, trainer.loader()
    began_s = time.perf_counter()
    staging.prepare(state.table_of(trainer.transformer, trainer.optimizer))
    assert staging.making is not None
    staging.making.result()
    pinned_s = time.perf_counter() - began_s
    copied_gb = sum(tensor.nbytes for tensor in staging.copies.values()) / 1e9

    def step_s(number: int) -> float:
        batches = loader.load(number)
        began_s = synchronised_s(device)
        trainer._update(loader.sample_ids(number), batches)
        return synchronised_s(device) - began_s

    try:
        before_s = statistics.median([step_s(number) for number in range(4)][1:])
        began_s = synchronised_s(device)
        trainer._save()
        called_s = time.perf_counter() - began_s
        # its update waits for the copy
        after_s = step_s(4)
        trainer.saver.wait()
        saved_s = time.perf_counter() - began_s
    finally:
        trainer.saver.close()
        trainer.record.close()
    return {
        "layers": config.model.num_layers,
        "parameters": trainer.num_parameters,
        "copied_gb": round(copied_gb, 2),
        "pinned_s": round(pinned_s, 2),
        "save_blocks_s": round(called_s + after_s - before_s, 3),
        "save_call_s": round(called_s, 3),
        "step_s": round(before_s, 3),
        "save_s": round(saved_s, 1),
    }


def measured_row(name: str, count: int, typed: argparse.Namespace, device: torch.device) -> Row:
    """Return a row, or what went wrong with it."""
    more = OURS.get(name, SAVE if name == "save" else ())
    config = config_of(typed.folder, [*more, *(typed.overrides or ["model=7b"])])
    tokens = token_count(config)
    row: Row = {"row": name, "typed": " ".join(more), "tokens": tokens}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(1)
    try:
        if name in PLAIN:
            row |= plain_row(config, name, device, count)
        elif name == "save":
            return {**row, **save_row(config, typed.folder, device)}
        else:
            row |= our_row(config, typed.folder, device, count)
    except Exception as error:  # noqa: BLE001 (the other rows still count)
        traceback.print_exc()
        return {**row, "error": f"{type(error).__name__}: {str(error)[:300]}"}
    clips = config.trainer.global_batch_size if name in OURS else 1
    tflop = 3 * clips * forward_flop(config.model, tokens) / 1e12
    row |= {"clips_per_s": clips / row["step_s"], "tflop_per_s": tflop / row["step_s"]}
    row["share_of_matmul"] = row["tflop_per_s"] / typed.matmul
    row |= {"matmul_tflop_per_s": typed.matmul, "model_tflop": tflop}
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        row["allocated_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 1)
        row["reserved_gb"] = round(torch.cuda.max_memory_reserved(device) / 1e9, 1)
        # with what CUDA itself takes
        row["used_gb"] = round((total_bytes - free_bytes) / 1e9, 1)
        row["device"] = torch.cuda.get_device_name(device)
    return row


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| row | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 1) + "|"]
    for row in rows:
        cells = [f"{row[name]:.4g}" if name in row else "-" for name in SHOWN]
        lines.append(f"| {row['row']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure the named rows one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="+", help=f"of {', '.join(ROWS)}; NAME:3 for three steps")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--matmul-size", type=int, default=8192)
    parser.add_argument("--folder", type=Path, default=Path("post_train_step"))
    parser.add_argument("--out", type=Path, default=Path("post_train_step.jsonl"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    typed = parser.parse_args()
    asked = [(name, int(count or typed.steps)) for name, _, count in map(_parted, typed.rows)]
    unknown = [name for name, _ in asked if name not in ROWS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such row; use some of {', '.join(ROWS)}")
    # a forked process cannot use a GPU that an import has touched
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    for name, count in asked:
        # what a row leaves behind, as which kernels are allowed, must not reach the next
        process = context.Process(target=write_row, args=(name, count, typed))
        process.start()
        process.join()
        if process.exitcode:
            write_line(typed.out, {"row": name, "error": f"exit code {process.exitcode}"})
    rows = [json.loads(line) for line in typed.out.read_text().splitlines()]
    print(table(rows[-len(asked) :]), flush=True)


def write_row(name: str, count: int, typed: argparse.Namespace) -> None:
    """Measure one row in this process, which has not touched a GPU yet."""
    state.fill_shards = fill_at_random
    config = config_of(typed.folder, typed.overrides or ["model=7b"])
    device = pick_device(config.engine.device)
    make_samples(config)
    typed.matmul = round(matmul_tflop_per_s(device, typed.matmul_size), 4)
    print(f"bf16 matrix product {typed.matmul_size}^3: {typed.matmul:.4g} TFLOP/s", flush=True)
    write_line(typed.out, measured_row(name, count, typed, device))


def write_line(path: Path, row: Row) -> None:
    """Append a row to the file and print it."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def _parted(row: str) -> tuple[str, str, str]:
    return row.partition(":")


if __name__ == "__main__":
    main()
