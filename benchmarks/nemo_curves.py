"""Steps of both engines on the same samples, noise and first weights: loss curves and a picture.

    python benchmarks/nemo_curves.py --samples SAMPLES --out curves model=tiny ...

SAMPLES is a folder of stage=preprocess, and the overrides name the model it was made for. Weights
are a function of their names, drawn on the device with every gate open. Writes curves.csv and
curves.png into --out, prints the greatest differences as JSON. `--cpu` rehearses it.
"""

import argparse
import csv
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import torch
from mesh_step import config_of

from cosmos_hydra.config import Config
from cosmos_hydra.data.store import open_store
from cosmos_hydra.engines.torch import checkpoint, start
from cosmos_hydra.engines.torch import trainer as torch_engine
from cosmos_hydra.engines.torch.device import pick_device
from cosmos_hydra.engines.torch.mesh import join
from cosmos_hydra.tracking import metrics

TESTS = Path(__file__).parents[1] / "tests" / "nemo_engine"
RUNS = {
    "torch fp32": ("engine=torch", "parallel.precision=fp32"),
    "torch bf16": ("engine=torch", "parallel.precision=bf16"),
    "nemo bf16": ("engine=nemo", "parallel.precision=bf16"),
}
FIXED = ("trainer.save_every=0", "optim.lr=1e-4", "optim.warmup_steps=5")


def drawn(name: str, shape: torch.Size, device: torch.device) -> torch.Tensor:
    """Return bfloat16 numbers, as released weights are, that keep the size of what they meet."""
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(shape, generator=generator, device=device)
    if len(shape) == 1:
        return (1 + 0.1 * values).bfloat16().float()
    scale = 0.02 if "pos_emb_" in name else 0.3 if "linear_2" in name else 1.0
    return (scale * values * shape[1] ** -0.5).bfloat16().float()


def train(config: Config, run: Path, device: torch.device) -> list[dict[str, Any]]:
    """Train to the end without saving and return the rows of the steps."""
    store = open_store(config.data.path)
    run.mkdir(parents=True)
    trainer: Any
    if config.engine.name == "torch":
        trainer = torch_engine.Trainer(config, run, store, join(config, device))
    else:
        from cosmos_hydra.engines.nemo import trainer as nemo_engine
        from cosmos_hydra.engines.nemo.callbacks import Look

        nemo_engine.initial = lambda name, shape, seed: drawn(name, shape, device)
        Look._save = lambda self, module: None
        if device.type == "cpu":
            nemo_engine.check_device = lambda device: None
        trainer = nemo_engine.Trainer(config, run, store, join(config, device))
    trainer.train()
    return [row for row in metrics.read(run / "metrics.jsonl") if "loss" in row]


def train_in_turn(
    configs: dict[str, Config], folder: Path, device: torch.device
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each run; NeMo's comes last, and has the CPU for CUDA in a rehearsal."""
    checkpoint.check_space = lambda run, size_bytes: None
    start.initial = lambda name, shape, seed: drawn(name, shape, device)
    torch_engine.Trainer._save = lambda self: None
    rows = {}
    for name, config in configs.items():
        run = folder / name.replace(" ", "_")
        if config.engine.name == "nemo" and device.type == "cpu":
            sys.path.insert(0, str(TESTS))
            from cpu_for_cuda import cpu_for_cuda

            with cpu_for_cuda():
                rows[name] = train(config, run, device)
        else:
            rows[name] = train(config, run, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def write(rows: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """Write the losses and gradient norms as a table, and the losses as a picture."""
    names = list(rows)
    with (out / "curves.csv").open("w", newline="") as file:
        table = csv.writer(file)
        kinds = ("loss", "grad_norm")
        table.writerow(["step", *(f"{name} {kind}" for kind in kinds for name in names)])
        for parts in zip(*rows.values(), strict=True):
            values = [part[kind] for kind in kinds for part in parts]
            table.writerow([parts[0]["step"], *values])
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    exact = [row["loss"] for row in rows[names[0]]]
    for name, style in zip(names, ("-", "--", ":"), strict=True):
        steps = [row["step"] for row in rows[name]]
        losses = [row["loss"] for row in rows[name]]
        above.plot(steps, losses, style, label=name, linewidth=2)
        apart = [abs(one / other - 1) for one, other in zip(losses, exact, strict=True)]
        below.plot(steps, apart, style, label=name, linewidth=2)
    above.set_ylabel("training loss")
    above.legend()
    below.set(xlabel="step", ylabel=f"relative difference to {names[0]}")
    figure.savefig(out / "curves.png", dpi=120)


def differences(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the greatest relative differences of losses and norms to the first run."""
    first, *others = rows
    return {
        f"{name} {kind}": max(
            abs(row[kind] / exact[kind] - 1)
            for row, exact in zip(rows[name], rows[first], strict=True)
        )
        for name in others
        for kind in ("loss", "grad_norm")
    }


def main() -> None:
    """Train with each engine and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("nemo_curves"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("overrides", nargs="*")
    typed = parser.parse_args()
    fixed = [*FIXED, f"trainer.max_steps={typed.steps}"]
    fixed += ["engine.device=cpu"] if typed.cpu else []
    configs = {
        name: config_of(typed.out, [*fixed, *own, *typed.overrides, f"data.path={typed.samples}"])
        for name, own in RUNS.items()
    }
    device = pick_device(configs["torch fp32"].engine.device)
    rows = train_in_turn(configs, typed.out / "runs", device)
    write(rows, typed.out)
    print(json.dumps(differences(rows)))


if __name__ == "__main__":
    main()
