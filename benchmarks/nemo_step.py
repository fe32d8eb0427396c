"""Training steps of engine=nemo beside the torch engine and the old recipe's attention.

    python benchmarks/nemo_step.py --out step.json model=7b

Each case is a process of its own: the engine's Trainer on one GPU, with samples made up at the
configured clip and weights drawn on the device; no checkpoint is written. Everywhere blocks are
recomputed in full, gradients and Adam's weights are float32 and its moments bfloat16: float32 ones
do not fit beside 7b. For that the nemo cases turn on Megatron's precision-aware optimizer, whose
float32 weights are the bfloat16 ones and 16 bits more. With NVTE_FUSED_ATTN=0 the old recipe's
container ran FlashAttention 2; here that is PyTorch's. `--cpu` rehearses it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mesh_step import config_of, fill_at_random, make_samples

from cosmos_hydra.config import Attention, Config
from cosmos_hydra.data.store import open_store
from cosmos_hydra.engines.torch import checkpoint, state
from cosmos_hydra.engines.torch.device import pick_device
from cosmos_hydra.engines.torch.kernels import effective_attention, kernel_of
from cosmos_hydra.engines.torch.mesh import join
from cosmos_hydra.engines.torch.trainer import Trainer
from cosmos_hydra.tracking import metrics

NEMO = ("engine=nemo", "parallel.recompute=full")
CASES = {
    "nemo": NEMO,
    "torch": ("engine=torch", "parallel.recompute=full", "optim.state=bf16"),
    "nemo-flash": NEMO,
    "torch-save-attention": (
        *("engine=torch", "parallel.recompute=save_attention", "optim.state=bf16"),
    ),
}
OLD = "nemo-flash"
TESTS = Path(__file__).parents[1] / "tests" / "nemo_engine"


def torch_trainer(config: Config, run: Path) -> Any:
    """Return the torch engine's trainer."""
    state.fill_shards = fill_at_random
    Trainer._save = lambda self: None
    device = pick_device(config.engine.device)
    return Trainer(config, run, open_store(config.data.path), join(config, device))


def nemo_trainer(config: Config, run: Path, is_old: bool) -> Any:
    """Return the nemo engine's trainer."""
    from cosmos_hydra.engines.nemo import callbacks, layers, module, settings, trainer

    trainer.Trainer._fill = lambda self, network: fill_at_random(network, None)
    callbacks.Look._save = lambda self, module: None
    device = pick_device(config.engine.device)
    if is_old:
        module.block_spec = partial(with_flash_attention, layers.block_spec)
    if device.type == "cuda":
        settings.optimizer = partial(with_small_moments, settings.optimizer)
    else:
        trainer.check_device = lambda device: None
    return trainer.Trainer(config, run, open_store(config.data.path), join(config, device))


def with_flash_attention(block_spec: Any, device: torch.device) -> Any:
    """Return the layer spec with PyTorch's FlashAttention 2 in place of fused attention."""
    from cosmos_hydra.engines.nemo.layers import SdpaAttention

    class Flash(SdpaAttention):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            if device.type == "cuda":
                self.kernel = kernel_of(Attention.flash)

    spec = block_spec(device)
    for attention in (spec.submodules.full_self_attention, spec.submodules.cross_attention):
        attention.submodules.core_attention = Flash
    return spec


def with_small_moments(optimizer: Any, config: Config) -> Any:
    """Return the engine's optimizer with moments in bfloat16."""
    from megatron.core.optimizer import OptimizerConfig

    built = optimizer(config)
    kept = {n: v for n, v in vars(built.config).items() if n in OptimizerConfig.__annotations__}
    small = {"exp_avg_dtype": torch.bfloat16, "exp_avg_sq_dtype": torch.bfloat16}
    built.config = OptimizerConfig(**{**kept, **small, "use_precision_aware_optimizer": True})
    return built


def attention_of(config: Config, device: torch.device, case: str) -> str:
    """Return which attention ran last."""
    if case == OLD:
        return "flash"
    if config.engine.name == "torch":
        return effective_attention(config, device).name
    if device.type == "cpu":
        return "PyTorch's"
    from transformer_engine.pytorch.attention.dot_product_attention import (
        dot_product_attention as te,
    )

    backends = te._attention_backends
    names = [name for name in ("flash", "fused", "unfused") if backends[f"use_{name}_attention"]]
    return f"Transformer Engine's {' '.join(names)}, {backends['fused_attention_backend']}"


def measure(case: str, config: Config, folder: Path) -> dict[str, Any]:
    """Return what the steps of a case take."""
    run = folder / case
    run.mkdir(parents=True)
    checkpoint.check_space = lambda run, size_bytes: None
    began_s = time.perf_counter()
    is_torch = config.engine.name == "torch"
    trainer = torch_trainer(config, run) if is_torch else nemo_trainer(config, run, case == OLD)
    print(f"{case}: built after {time.perf_counter() - began_s:.1f} s", flush=True)
    trainer.train()
    took_s = time.perf_counter() - began_s
    rows = [row for row in metrics.read(run / "metrics.jsonl") if "loss" in row]
    steps_s = [row["step_s"] for row in rows]
    device = trainer.ranks.device
    is_cuda = device.type == "cuda"
    return {
        "case": case,
        # the first step compiles, plans and allocates
        "step_s": statistics.median(steps_s[1:]),
        "steps_s": steps_s,
        "allocated_gb": rows[-1]["mem_gb"],
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9 if is_cuda else None,
        "attention": attention_of(config, device, case),
        "losses": [row["loss"] for row in rows],
        "grad_norms": [row["grad_norm"] for row in rows],
        "data_wait_s": max(row["data_wait_s"] for row in rows[1:]),
        "whole_s": took_s,
    }


def enter(case: str, config: Config, folder: Path, is_cpu: bool) -> None:
    """Measure a case in this process, and write its row."""
    torch.manual_seed(1)
    if is_cpu and config.engine.name == "nemo":
        sys.path.insert(0, str(TESTS))
        from cpu_for_cuda import cpu_for_cuda

        with cpu_for_cuda():
            row = measure(case, config, folder)
    else:
        row = measure(case, config, folder)
    (folder / f"{case}.json").write_text(json.dumps(row))


def table_of(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    base = next((row["step_s"] for row in rows if row.get("case") == "torch"), None)
    lines = ["| case | s a clip | beside torch | all steps | GB allocated (reserved) | attention |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['case']} | {row['error']} | | | | |")
            continue
        beside = f"{row['step_s'] / base - 1:+.1%}" if base else "-"
        steps = ", ".join(f"{step_s:.2f}" for step_s in row["steps_s"])
        memory = f"{row['allocated_gb']:.1f} ({row['reserved_gb'] or 0:.1f})"
        cells = (row["case"], f"{row['step_s']:.2f}", beside, steps, memory, row["attention"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure all cases, and print a table after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("nemo_step.json"))
    parser.add_argument("--folder", type=Path, default=Path("nemo_step"))
    parser.add_argument("--steps", type=int, default=4, help="the first is not counted")
    parser.add_argument("--cases", default=",".join(CASES), help="with commas between")
    parser.add_argument("--limit", type=float, default=200, help="seconds of one case")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*")
    typed = parser.parse_args()
    fixed = [f"trainer.max_steps={typed.steps}", "trainer.save_every=0"]
    if typed.cpu:  # small moments need Transformer Engine in one, CUDA's kernel in the other
        typed.overrides += ["engine.device=cpu", "optim.state=fp32"]
    cases = typed.cases.split(",")
    configs = {
        case: config_of(typed.folder, [*fixed, *CASES[case], *typed.overrides]) for case in cases
    }
    if typed.inside:
        enter(cases[0], configs[cases[0]], typed.folder, typed.cpu)
        return
    make_samples(configs[cases[0]])
    rows: list[dict[str, Any]] = []
    command = [sys.executable, __file__, "--inside", f"--folder={typed.folder}"]
    command += [f"--steps={typed.steps}", *(["--cpu"] if typed.cpu else [])]
    for case in cases:
        log = typed.folder / f"{case}.log"
        try:
            with log.open("w") as stream:
                subprocess.run(
                    [*command, f"--cases={case}", *typed.overrides],
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    timeout=typed.limit,
                    check=True,
                )
            rows.append(json.loads((typed.folder / f"{case}.json").read_text()))
        except subprocess.SubprocessError as error:
            print(log.read_text()[-3000:])
            metrics_of = typed.folder / case / "metrics.jsonl"
            print(metrics_of.read_text() if metrics_of.is_file() else f"{case}: no step was made")
            rows.append({"case": case, "error": type(error).__name__})
        typed.out.write_text(json.dumps(rows, indent=1))
        print(table_of(rows), flush=True)


if __name__ == "__main__":
    main()
