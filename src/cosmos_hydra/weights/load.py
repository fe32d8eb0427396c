"""Fill a transformer, or this rank's shards of it, from located weights."""

import torch.distributed as dist
from torch import nn

from cosmos_hydra.engines.torch import state
from cosmos_hydra.weights import diffusers
from cosmos_hydra.weights.locate import Located


def load_weights(
    transformer: nn.Module, weights: Located, group: dist.ProcessGroup | None = None
) -> None:
    """Copy weights into a transformer, strictly; called by every rank of `group`, if there is one.

    Raises: StageError listing every missing, unexpected and misshapen key.
    """
    if weights.checkpoint is None:
        diffusers.load_transformer(transformer, weights.transformer)
    else:
        state.read_into(state.table_of(transformer), weights.checkpoint.state, group)
