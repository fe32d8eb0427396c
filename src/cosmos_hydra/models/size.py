"""How large a transformer is and how much it computes, from the numbers of its config alone.

Source: the shapes of diffusers' `CosmosTransformer3DModel`; no torch is needed to know them.
Legend: D model width, K head dim, T text tokens, L tokens of a latent.
"""

from math import prod

from cosmos_hydra.config import ModelConfig


def width(model: ModelConfig) -> int:
    """Return the channels of a token."""
    return model.num_heads * model.head_dim


def parameter_count(model: ModelConfig) -> int:
    """Return the parameters of the transformer, as built for training."""
    D, K, rank = width(model), model.head_dim, model.adaln_lora_dim
    self_attention = 4 * D * D + 2 * K  # K: the norms of queries and keys
    cross_attention = 2 * D * D + 2 * D * model.text_dim + 2 * K
    mlp = 2 * D * int(D * model.mlp_ratio)
    modulations = 3 * (D * rank + rank * 3 * D)
    block = self_attention + cross_attention + mlp + modulations
    cells = prod(model.patch_size)
    patches = (model.latent_channels + 1) * cells * D  # one more for the padding mask
    sizes = zip(model.max_size, model.patch_size, strict=True)
    positions = sum(size // patch for size, patch in sizes) * D
    time = D * D + D * 3 * D + D
    head = D * rank + rank * 2 * D + D * cells * model.latent_channels
    return model.num_layers * block + patches + positions + time + head


def forward_flop(model: ModelConfig, num_tokens: int) -> float:
    """Return the operations of one forward pass over one latent, a multiply-add being two.

    Counted are matrix products with tokens, and attention; a training step is three times this.
    """
    D, T, L = width(model), model.text_tokens, num_tokens
    linear = 2 * L * (6 + 2 * model.mlp_ratio) * D * D + 2 * T * 2 * model.text_dim * D
    attention = 4 * L * (L + T) * D
    return model.num_layers * (linear + attention)
