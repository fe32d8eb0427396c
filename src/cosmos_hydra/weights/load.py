"""Fill a transformer, or this rank's shards of it, from located weights."""

import torch.distributed as dist
from torch import nn

from cosmos_hydra.engines.torch import state
from cosmos_hydra.models.lora import named_weights
from cosmos_hydra.weights import diffusers
from cosmos_hydra.weights.locate import Located
from cosmos_hydra.weights.tensors import reader_of


def load_weights(
    transformer: nn.Module,
    weights: Located,
    group: dist.ProcessGroup | None = None,
    elsewhere: str | None = None,
) -> None:
    """Copy weights into a transformer, strictly; called by every rank of `group`, if there is one.

    Those of a LoRA run come merged; what its adapters belong to may lie in `elsewhere` now.
    Adapters of the transformer itself stay as they are.
    Raises: StageError listing every missing, unexpected and misshapen key.
    """
    if weights.checkpoint is None:
        diffusers.load_transformer(transformer, weights.transformer)
    elif weights.checkpoint.peft is None:
        table = {f"{state.WEIGHT}.{name}": p.detach() for name, p in named_weights(transformer)}
        state.read_into(table, weights.checkpoint.state, group)
    else:
        state.fill_shards(transformer, reader_of(weights, elsewhere))
