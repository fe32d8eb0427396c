"""Small runs without the command line: a composed config, a trainer, what it left on disk."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from conftest import SMALL
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from cosmos_hydra import config as schema
from cosmos_hydra import runs
from cosmos_hydra.config import Config, ModelConfig, SyntheticConfig
from cosmos_hydra.data.store import open_store
from cosmos_hydra.engines.torch.checkpoint import open_checkpoint
from cosmos_hydra.engines.torch.mesh import join
from cosmos_hydra.engines.torch.state import fill_shards, read_into
from cosmos_hydra.engines.torch.trainer import Trainer
from cosmos_hydra.job import Job
from cosmos_hydra.models.transformer import build_transformer, initial
from cosmos_hydra.overrides import conf_folder
from cosmos_hydra.stages.generate import run as run_generate
from cosmos_hydra.tracking import metrics
from cosmos_hydra.weights.diffusers import save_transformer
from cosmos_hydra.weights.load import load_weights
from cosmos_hydra.weights.locate import Format, Located, locate
from cosmos_hydra.weights.torch_metadata import read_metadata

TIMINGS = ("step_s", "data_wait_s", "tokens_per_s", "mem_gb", "validation_s")
SAMPLES = "samples/synthetic-toy-9x48x64"
FPS = SyntheticConfig().fps


@cache
def _composed() -> DictConfig:
    schema.register()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", ["stage=post_train", *SMALL])


def small_config(folder: Path, *overrides: str) -> Config:
    """Return the config of post_train with SMALL on the samples of the fixture `small_samples`.

    Overrides are keys, not groups; composing once makes the next config cheap.
    """
    typed = OmegaConf.from_dotlist([f"data.path={folder / SAMPLES}", *overrides])
    return schema.load(OmegaConf.merge(_composed(), typed))


def trainer_of(config: Config, run: Path) -> Trainer:
    """Return a trainer on the CPU; building it loads what it starts from."""
    return Trainer(config, run, open_store(config.data.path), join(config, torch.device("cpu")))


def train(config: Config, run: Path) -> Trainer:
    """Train to the end and return the trainer."""
    trainer = trainer_of(config, run)
    trainer.train()
    return trainer


def generate(checkpoint: Path, out: Path, *overrides: str) -> list[Path]:
    """Run the stage `generate` on a run or a step and return the videos."""
    typed = (f"checkpoint={checkpoint}", f"generate.out={out}", *overrides)
    config = small_config(Path(), "stage=generate", *typed)
    return run_generate(config, Job(out, typed))


def rows_of(run: Path) -> list[dict[str, Any]]:
    """Return the training and validation rows of metrics.jsonl without timings and memory."""
    rows = metrics.read(run / "metrics.jsonl")
    return [
        {name: value for name, value in row.items() if name not in TIMINGS}
        for row in rows
        if "loss" in row or "val_loss" in row
    ]


def state_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Return weights and optimizer state of a checkpoint."""
    return tensors_in(runs.step_folder(run, step) / "state")


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a torch.distributed.checkpoint folder."""
    stored = read_metadata(folder).tensors
    table = {
        name: torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype))
        for name, tensor in stored.items()
    }
    read_into(table, folder, None)
    return table


def weight_of(run: Path, step: int, name: str) -> torch.Tensor:
    """Return one parameter of a checkpoint."""
    return state_of(run, step)[f"weight.{name}"]


def initialised(model: ModelConfig, seed: int) -> Any:
    """Return a transformer with the first weights of training from scratch."""
    transformer = build_transformer(model)
    fill_shards(transformer, lambda name, shape: initial(name, shape, seed))
    return transformer


def load_folder(transformer: Any, folder: Path) -> None:
    """Load a diffusers folder as post_train does."""
    load_weights(transformer, Located(folder, Format.diffusers))


def export(folder: Path, out: Path) -> Path:
    """Write the weights of a checkpoint as a diffusers folder and return that."""
    model = schema.from_dict(open_checkpoint(folder).manifest["config"]).model
    transformer = build_transformer(model)
    load_weights(transformer, locate(str(folder), "checkpoint"))
    save_transformer(transformer, model, out)
    return out


def assert_same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Compare names and, bitwise, values."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
