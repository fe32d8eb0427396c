"""Convert a made-up checkpoint through every format and back; print time, speed and memory.

    python benchmarks/convert_weights.py FOLDER [--keep] model=7b [model.num_layers=8]

FOLDER needs room for two checkpoints (with --keep for five). Weights are random bfloat16 of the
configured model. Each conversion is the command `stage=export` in a process of its own; memory is
the most it had for itself (RssAnon: mapped files are the system's to drop), less that of the same
command for a model of one thin layer. The last folder must equal the first bit for bit.
"""

import argparse
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from hydra import compose, initialize_config_dir

from cosmos_hydra import config as schema
from cosmos_hydra.config import ModelConfig
from cosmos_hydra.models.transformer import build_transformer
from cosmos_hydra.overrides import conf_folder
from cosmos_hydra.seeds import torch_generator
from cosmos_hydra.weights import diffusers
from cosmos_hydra.weights.diffusers_export import write_diffusers
from cosmos_hydra.weights.locate import locate
from cosmos_hydra.weights.source import Entry, Source
from cosmos_hydra.weights.zarr import HEADER, ZarrArray

THIN = ("model=tiny", "model.num_layers=1", "model.num_heads=1", "model.head_dim=24")
GB = 1e9


class Made(Source):
    """Random weights, a function of their names."""

    def read(self, name: str) -> torch.Tensor:
        return made(name, self.entries[name].shape)


def made(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    # any bits that are finite numbers, quickly
    generator = torch_generator("weights", name)
    bits = torch.randint(0, 0x3F80, shape, generator=generator, dtype=torch.int16)
    return bits.view(torch.bfloat16)


def write_first(model: ModelConfig, folder: Path) -> float:
    """Write the made-up weights as a diffusers folder and return their size in GB."""
    with torch.device("meta"):
        parameters = dict(build_transformer(model).named_parameters())
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    entries = {name: Entry(tuple(s), torch.bfloat16, name) for name, s in shapes.items()}
    folder.mkdir(parents=True)
    dtypes = dict.fromkeys(shapes, torch.bfloat16)
    write_diffusers(folder, Made(folder, entries), shapes, dtypes, shard_gb=10)
    diffusers.write_config(model, folder)
    return sum(2 * shape.numel() for shape in shapes.values()) / GB


def convert(source: Path, out: Path, form: str, typed: list[str]) -> tuple[float, float]:
    """Run stage=export; return seconds and the most memory it had for itself, GB."""
    program = [sys.executable, "-m", "cosmos_hydra", "stage=export", f"checkpoint={source}"]
    asked = [f"export.format={form}", f"export.path={out}", *typed]
    began_s, most_kb = time.perf_counter(), 0
    with subprocess.Popen([*program, *asked], stdout=subprocess.DEVNULL) as child:
        while child.poll() is None:
            status = Path(f"/proc/{child.pid}/status").read_text()
            lines = [line.split() for line in status.splitlines() if line.startswith("RssAnon")]
            most_kb = max([most_kb, *(int(line[1]) for line in lines)])
            time.sleep(0.01)
        if child.returncode:
            raise SystemExit(f"the export to {out} failed")
    return time.perf_counter() - began_s, most_kb * 1024 / GB


def write_torch_dist(zarr: Path, out: Path) -> None:
    """Write the arrays of a zarr checkpoint as a distributed one, in memory all at once."""
    keys = [header.parent.name for header in sorted(zarr.glob(f"*/{HEADER}"))]
    arrays = {key: ZarrArray.open(zarr, key).read() for key in keys}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process only
        dcp.save(arrays, checkpoint_id=out, no_dist=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", action="store_true", help="keep every folder")
    parser.add_argument("--torch-dist", action="store_true", help="also by that format")
    options, typed = parser.parse_known_args()
    schema.register()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        model, thin = (
            schema.load(compose("config", ["stage=export", *keys])).model
            for keys in (typed, list(THIN))
        )
    folder = options.folder
    write_first(thin, folder / "thin")
    base_s, base_gb = convert(folder / "thin", folder / "thin-out", "diffusers", list(THIN))
    print(f"the command itself: {base_s:.1f} s, {base_gb:.2f} GB")
    size_gb = write_first(model, folder / "diffusers")
    digest = locate(str(folder / "diffusers"), "checkpoint").digest
    widest_gb = (
        2 * model.num_layers * (model.num_heads * model.head_dim) ** 2 * model.mlp_ratio / GB
    )
    print(f"{size_gb:.2f} GB of bfloat16; the largest stack of layers has {widest_gb:.2f} GB")
    print("| from | to | s | MB/s | GB beside the command's own |\n|---|---|---|---|---|")
    steps = [("original", "original"), ("nemo", "nemo"), ("diffusers", "back")]
    before = "diffusers"
    for form, name in steps:
        source = before
        if name == "back" and options.torch_dist:
            write_torch_dist(folder / "nemo", folder / "torch_dist")
            source = "torch_dist"
        spent_s, most_gb = convert(folder / source, folder / name, form, typed)
        speed = 1000 * size_gb / (spent_s - base_s)
        print(f"| {source} | {form} | {spent_s:.0f} | {speed:.0f} | {most_gb - base_gb:.2f} |")
        if not options.keep:
            shutil.rmtree(folder / before)
            shutil.rmtree(folder / source, ignore_errors=True)
        before = name
    same = locate(str(folder / "back"), "checkpoint").digest == digest
    print(f"back again: {'bit for bit' if same else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
