"""Fill a transformer, or this rank's shards of it, from located weights."""

import torch.distributed as dist
from torch import nn

from cosmos_hydra.engines.torch import state
from cosmos_hydra.models.lora import named_weights
from cosmos_hydra.weights.locate import Located
from cosmos_hydra.weights.open import open_weights


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
    found = weights.checkpoint
    if found is not None and found.peft is None:
        # every rank reads its parts, of all tensors at once
        table = {f"{state.WEIGHT}.{name}": p.detach() for name, p in named_weights(transformer)}
        state.read_into(table, found.state, group)
        return
    shapes = {name: parameter.shape for name, parameter in named_weights(transformer)}
    source = open_weights(weights, shapes, elsewhere)
    state.fill_shards(transformer, lambda name, _: source.get(name))
