"""Steps of a full-size model with random weights on any layout: seconds, memory, saving, resuming.

    torchrun --nproc_per_node=2 benchmarks/mesh_step.py --steps 5 model=7b parallel=fsdp ...

Prints one JSON line. Made-up samples of the configured clip, the trainer's own step. `--save`
writes a checkpoint into --folder; a later command with the same folder resumes from it.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hydra import compose, initialize_config_dir

from cosmos_hydra import config as schema
from cosmos_hydra.config import Config, Stage
from cosmos_hydra.data.clips import latent_shape
from cosmos_hydra.data.store import open_store
from cosmos_hydra.engines.torch import state
from cosmos_hydra.engines.torch.device import pick_device
from cosmos_hydra.engines.torch.fit import estimate
from cosmos_hydra.engines.torch.kernels import effective_attention
from cosmos_hydra.engines.torch.mesh import Ranks, join
from cosmos_hydra.engines.torch.parts import local
from cosmos_hydra.engines.torch.saving import Saver
from cosmos_hydra.engines.torch.trainer import Trainer
from cosmos_hydra.overrides import conf_folder
from cosmos_hydra.tracking.record import Record

FIXED = (
    "stage=post_train",
    "data=robot",
    "data.source=none",
    "model.weights.from_scratch=true",
    "trainer.preview_every=0",
    "trainer.validate_every=0",
)


def config_of(folder: Path, overrides: list[str]) -> Config:
    """Return the config of post_train on made-up samples in a folder."""
    schema.register()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        typed = [*FIXED, f"data.path={folder / 'samples'}", *overrides]
        return schema.load(compose("config", typed))


def make_samples(config: Config) -> None:
    """Write four samples as the NeMo data module has them."""
    folder, model = Path(config.data.path), config.model
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    facts = {name: getattr(config.data, name) for name in ("height", "width")}
    for number in range(4):
        shape = latent_shape(config.data, model.latent_channels)
        tensors = {
            "video_latent": torch.randn(shape, generator=generator),
            "t5_text_embeddings": torch.randn(
                model.text_tokens, model.text_dim, generator=generator
            ),
            "t5_text_mask": torch.ones(model.text_tokens),
        }
        for name, tensor in tensors.items():
            torch.save(tensor.bfloat16(), folder / f"{number}.{name}.pth")
        described = {**facts, "fps": 24.0, "num_frames": config.data.frames}
        (folder / f"{number}.info.json").write_text(json.dumps(described))


def fill_at_random(module: torch.nn.Module, whole: Any) -> None:
    """Fill each rank's part on its device, in place of values that are drawn on the CPU."""
    for parameter in module.parameters():
        local(parameter).detach().normal_(0, 0.02)


def synchronised_s(device: torch.device) -> float:
    """Return the time when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(config: Config, folder: Path, ranks: Ranks, steps: int, is_saving: bool) -> Any:
    """Return what a few steps, and a checkpoint, take."""
    began_s = time.perf_counter()
    trainer = Trainer(config, folder / "run", open_store(config.data.path), ranks)
    built_s = synchronised_s(ranks.device) - began_s
    loader = trainer.loader()
    trainer.denoiser.train()
    row: dict[str, Any] = {"first_step": trainer.step, "built_s": round(built_s, 1)}
    row |= {"step_s": [], "losses": []}
    for step in range(trainer.step, trainer.step + steps):
        batches = loader.load(step)
        began_s = synchronised_s(ranks.device)
        outcome = trainer.stepper.compute(step, batches)
        trainer.stepper.apply(outcome)
        row["step_s"].append(round(synchronised_s(ranks.device) - began_s, 2))
        row["losses"].append(round(outcome.loss, 5))
    trainer.step += steps
    if ranks.device.type == "cuda":
        row["allocated_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
    if is_saving:
        trainer.record = Record(config, trainer.run, 0, ranks.is_first)
        trainer.saver = Saver(trainer.run, ranks, config.model, 1, None)
        began_s = time.perf_counter()
        trainer._save()
        row["save_blocks_s"] = round(time.perf_counter() - began_s, 1)
        trainer.saver.wait()
        row["save_s"] = round(time.perf_counter() - began_s, 1)
        trainer.saver.close()
    return row


def main() -> None:
    """Measure one layout and print a line on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("mesh_step"))
    parser.add_argument("overrides", nargs="*")
    typed = parser.parse_args()
    config = config_of(typed.folder, typed.overrides)
    ranks = join(config, pick_device(config.engine.device))
    if ranks.is_first:
        make_samples(config)
        (typed.folder / "run").mkdir(exist_ok=True)
    ranks.wait()
    torch.manual_seed(1 + ranks.rank)
    state.fill_shards = fill_at_random
    row = measure(config, typed.folder, ranks, typed.steps, typed.save)
    memory = estimate(config, ranks.device, Stage.post_train)
    row |= {
        "estimate_gb": round(memory.total_gb - memory.other_gb, 1),
        "attention": effective_attention(config, ranks.device).name,
        "typed": " ".join(typed.overrides),
    }
    if ranks.is_first:
        print(json.dumps(row), flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
