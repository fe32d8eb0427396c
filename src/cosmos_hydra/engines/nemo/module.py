"""The Lightning module and the data module that Megatron's strategy trains.

One forward pass is that of a batch of the torch engine's loader, with its noise; the loss is its
mean over the samples, so that Megatron's means over passes and ranks give that of the step.
"""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from nemo.lightning.megatron_parallel import MegatronLossReduction
from nemo.lightning.pytorch.optim import OptimizerModule
from nemo.lightning.pytorch.plugins import MegatronDataSampler

from cosmos_hydra.config import Config
from cosmos_hydra.data.loader import Batch, Loader
from cosmos_hydra.engines.nemo.layers import block_spec
from cosmos_hydra.engines.nemo.transformer import MegatronTransformer
from cosmos_hydra.engines.torch.degrees import token_count
from cosmos_hydra.engines.torch.mesh import Ranks
from cosmos_hydra.engines.torch.step import losses
from cosmos_hydra.errors import StageError
from cosmos_hydra.models.transformer import Denoiser


class MeanLoss(MegatronLossReduction):
    """From the losses of samples to that of a pass, and of passes to that of a step."""

    def forward(
        self, batch: Batch, losses_B: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss to go back from, and what is reported."""
        loss = losses_B.mean()
        return loss, {"avg": loss.detach()[None]}

    def reduce(self, losses_reduced_per_micro_batch: Any) -> torch.Tensor:
        """Return the mean over the passes of this rank."""
        return torch.cat([part["avg"] for part in losses_reduced_per_micro_batch]).mean()


class CosmosModule(pl.LightningModule):
    """What MegatronStrategy asks of a model."""

    def __init__(
        self,
        settings: Config,
        config: TransformerConfig,
        ranks: Ranks,
        optim: OptimizerModule,
        fill: Any,
    ) -> None:
        super().__init__()
        self.settings, self.ranks, self.fill_network = settings, ranks, fill
        self.config = config  # Megatron's; the strategy adds its own numbers
        optim.connect(self)
        # positions in the step, losses and sigmas of this rank's samples
        self.found: list[tuple[list[int], torch.Tensor, torch.Tensor]] = []

    def configure_model(self, vp_stage: int | None = None) -> None:
        """Build and fill this rank's part of the network, once."""
        if hasattr(self, "module"):
            return
        device = self.ranks.device
        with torch.device(device):
            self.module = MegatronTransformer(self.settings.model, self.config, block_spec(device))
        self.fill_network(self.module)

    @property
    def network(self) -> MegatronTransformer:
        """Return this rank's part of the network, without what the strategy wrapped it in."""
        network: Any = self.module
        while not isinstance(network, MegatronTransformer):
            network = network.module
        return network

    @property
    def tokens_of_a_step(self) -> int:
        """Return the tokens of a step over all ranks."""
        return self.settings.trainer.global_batch_size * token_count(self.settings)

    @property
    def denoiser(self) -> Denoiser:
        """Return the network, as the strategy has wrapped it, for evaluations."""
        return Denoiser(self.module)

    def data_step(self, dataloader_iter: Iterator[Any]) -> Batch:
        """Return the next batch, on the device."""
        batch: Batch = next(dataloader_iter)[0]
        return batch.to(self.ranks.device)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the loss of each sample."""
        sigma_data = self.settings.model.objective.sigma_data
        return losses(self.denoiser, batch, sigma_data, nullcontext)

    def forward_step(self, batch: Batch) -> torch.Tensor:
        """Return the losses of a batch, and note them."""
        losses_B = self(batch)
        self.found.append((batch.positions, losses_B.detach(), batch.sigma_B))
        return losses_B

    def training_step(self, batch: Batch, batch_idx: int | None = None) -> torch.Tensor:
        """Return the losses of a batch."""
        return self.forward_step(batch)

    @property
    def training_loss_reduction(self) -> MeanLoss:
        """Return how losses become one."""
        return MeanLoss()

    def take_found(self) -> tuple[list[float], list[float]]:
        """Return losses and sigmas of the step's samples over all ranks, by their position."""
        found = torch.zeros(2, self.settings.trainer.global_batch_size)
        for positions, losses_B, sigma_B in self.found:
            found[:, positions] = torch.stack([losses_B.float(), sigma_B.float()]).cpu()
        self.found.clear()
        step_losses, sigmas = self.ranks.sum_over_dp(found).tolist()
        return step_losses, sigmas


class Sampler(MegatronDataSampler):
    """Megatron's count of passes; which samples make a step is the loader's choice."""

    def transform_dataloader(self, dataloader: Any, consumed_samples: int = 0) -> Any:
        """Return the loader as it is."""
        return dataloader


class Passes:
    """The batches of all steps from one on, each as many as Megatron expects."""

    def __init__(self, loader: Loader, first_step: int, last_step: int, count: int) -> None:
        self.loader, self.first_step, self.last_step = loader, first_step, last_step
        self.count = count
        self.waited_s = 0.0

    def take_waited_s(self) -> float:
        """Return how long the step's batches were waited for."""
        waited_s, self.waited_s = self.waited_s, 0.0
        return waited_s

    def __iter__(self) -> Iterator[Batch]:
        steps = self.loader.steps(self.first_step, self.last_step)
        for _ in range(self.first_step, self.last_step):
            began_s = time.perf_counter()
            batches = next(steps)
            self.waited_s += time.perf_counter() - began_s
            if len(batches) != self.count:
                raise StageError(
                    f"engine=nemo needs steps of {self.count} equal passes, but a step has "
                    f"{len(batches)}, since its samples differ in frame rate; set data.fps and "
                    f"preprocess again, or use trainer.micro_batch_size=1 or engine=torch"
                )
            yield from batches


class Samples(pl.LightningDataModule):
    """The loader as a data module."""

    def __init__(self, config: Config, loader: Loader, first_step: int, ranks: Ranks) -> None:
        super().__init__()
        trainer = config.trainer
        micro, total = trainer.micro_batch_size, trainer.global_batch_size
        count = total // ranks.degrees.dp // micro
        self.passes = Passes(loader, first_step, trainer.max_steps, count)
        self.data_sampler = Sampler(
            seq_len=token_count(config),
            micro_batch_size=micro,
            global_batch_size=total,
            output_log=False,
        )

    def train_dataloader(self) -> Passes:
        """Return the batches of all steps that are left."""
        return self.passes
