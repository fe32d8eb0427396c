"""What the ranks of a test do; imported once by the server they are forked from."""

import json
from pathlib import Path

import torch
from small_runs import small_config
from torch.distributed.tensor import DTensor

from cosmos_hydra.config import Config
from cosmos_hydra.data.store import open_store
from cosmos_hydra.engines.torch import gate, state
from cosmos_hydra.engines.torch.mesh import join
from cosmos_hydra.engines.torch.parts import local
from cosmos_hydra.engines.torch.small_moments import MOMENTS
from cosmos_hydra.engines.torch.trainer import Trainer
from cosmos_hydra.errors import StageError
from cosmos_hydra.job import Job
from cosmos_hydra.stages.post_train import run as run_post_train
from cosmos_hydra.weights.source import WholeTensor

CPU = torch.device("cpu")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with the parts of all ranks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def compute_gradients(samples: Path, overrides: tuple[str, ...], out: Path) -> None:
    """Save losses, gradient norm and every parameter's gradient of one step."""
    config = small_config(samples, *overrides)
    trainer = noisy_trainer(config, out)
    outcome = trainer.stepper.compute(3, trainer.loader().load(3))
    gradients = {
        name: whole(parameter.grad).clone()
        for name, parameter in trainer.transformer.named_parameters()
        if parameter.grad is not None
    }
    if trainer.ranks.is_first:
        found = {"losses": outcome.losses, "norm": outcome.grad_norm, "gradients": gradients}
        torch.save(found, out / "found.pt")


def noisy_trainer(config: Config, run: Path) -> Trainer:
    """Return a trainer with other weights than a fresh model's, whose zeros hide gradients."""
    trainer = Trainer(config, run, open_store(config.data.path), join(config, CPU))
    with torch.no_grad():
        for name, parameter in trainer.transformer.named_parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
            add_part(parameter, 0.05 * noise)
    return trainer


def check_given_weights(samples: Path, overrides: tuple[str, ...], out: Path) -> None:
    """Save what the check before step 1 says on this rank, then with a fault on the last rank."""
    trainer = noisy_trainer(small_config(samples, *overrides), out)
    said: list[str] = []
    gate.logger.info = said.append  # type: ignore[method-assign, assignment]
    gate.check_paths(trainer.stepper, trainer.loader(), "given")
    if trainer.ranks.rank == trainer.ranks.degrees.world_size - 1:
        conditioned = gate.conditioned
        gate.conditioned = lambda network, text_BTD, *others: conditioned(
            network, 0 * text_BTD, *others
        )
    try:
        gate.check_paths(trainer.stepper, trainer.loader(), "given")
    except StageError as refusal:
        said.append(str(refusal))
    (out / f"rank_{trainer.ranks.rank}.json").write_text(json.dumps(said))


def count_held(samples: Path, overrides: tuple[str, ...], out: Path) -> None:
    """Save how many numbers of the model this rank holds, and how many it has read for that."""
    read = []

    class Counted:
        def __init__(self, source: WholeTensor) -> None:
            self.source = source

        def __getitem__(self, slices: tuple[slice, ...]) -> torch.Tensor:
            part = self.source[slices]
            read.append(part.numel())
            return part

    fill_part = state.fill_part
    state.fill_part = lambda parameter, source: fill_part(parameter, Counted(source))
    config = small_config(samples, *overrides)
    trainer = Trainer(config, out, open_store(config.data.path), join(config, CPU))
    parameters = list(trainer.transformer.parameters())
    moments = [trainer.optimizer.state[p][kind] for p in parameters for kind in MOMENTS]
    found = {
        "held": sum(local(p).numel() for p in parameters),
        "moments": sum(local(moment).numel() for moment in moments),
        "read": sum(read),
        "whole": trainer.num_parameters,
    }
    (out / f"rank_{trainer.ranks.rank}.json").write_text(json.dumps(found))


def add_part(parameter: torch.Tensor, change: torch.Tensor) -> None:
    """Add a whole tensor to what this rank holds of a parameter."""
    part = local(parameter)
    part += change[state.slices_of(parameter)]


def train(samples: Path, overrides: tuple[str, ...], run: Path) -> None:
    """Run the stage post_train."""
    run_post_train(small_config(samples, *overrides), Job(run, overrides))


def train_and_compare(samples: Path, overrides: tuple[str, ...], run: Path) -> None:
    """Train adapters and check that the weights below stay bitwise while each adapter moves."""
    config = small_config(samples, *overrides)
    run.mkdir(exist_ok=True)
    trainer = Trainer(config, run, open_store(config.data.path), join(config, CPU))
    before = {n: whole(p).clone() for n, p in trainer.transformer.named_parameters()}
    trainer.train()
    for name, parameter in trainer.transformer.named_parameters():
        assert torch.equal(whole(parameter), before[name]) == (".lora_" not in name), name
