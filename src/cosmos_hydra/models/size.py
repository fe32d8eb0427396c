"""How large a transformer is and how much it computes, from the numbers of its config alone.

Source: the shapes of diffusers' `CosmosTransformer3DModel`; no torch is needed to know them.
Legend: D model width, K head dim, T text tokens, L tokens of a latent.
"""

from math import prod

from cosmos_hydra.config import Config, ModelConfig, PeftKind


def width(model: ModelConfig) -> int:
    """Return the channels of a token."""
    return model.num_heads * model.head_dim


def input_channels(model: ModelConfig) -> int:
    """Return the channels of the network's input: latent, condition mask, padding mask."""
    return model.latent_channels + model.condition_mask + 1


def parameter_count(model: ModelConfig) -> int:
    """Return the parameters of the transformer, as built for training."""
    D, K, rank = width(model), model.head_dim, model.adaln_lora_dim
    self_attention = 4 * D * D + 2 * K  # K: the norms of queries and keys
    cross_attention = 2 * D * D + 2 * D * model.text_dim + 2 * K
    mlp = 2 * D * int(D * model.mlp_ratio)
    modulations = 3 * (D * rank + rank * 3 * D)
    block = self_attention + cross_attention + mlp + modulations
    cells = prod(model.patch_size)
    patches = input_channels(model) * cells * D
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


def linear_layers(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return inputs and outputs of every linear layer, by its name in the transformer."""
    D, rank, hidden = width(model), model.adaln_lora_dim, int(width(model) * model.mlp_ratio)
    cells = prod(model.patch_size)
    block = {"ff.net.0.proj": (D, hidden), "ff.net.2": (hidden, D)}
    for name, context in (("attn1", D), ("attn2", model.text_dim)):
        block |= {f"{name}.to_q": (D, D), f"{name}.to_out.0": (D, D)}
        block |= {f"{name}.{projection}": (context, D) for projection in ("to_k", "to_v")}
    for name in ("norm1", "norm2", "norm3"):
        block |= {f"{name}.linear_1": (D, rank), f"{name}.linear_2": (rank, 3 * D)}
    around = {
        "patch_embed.proj": (input_channels(model) * cells, D),
        "time_embed.t_embedder.linear_1": (D, D),
        "time_embed.t_embedder.linear_2": (D, 3 * D),
        "norm_out.linear_1": (D, rank),
        "norm_out.linear_2": (rank, 2 * D),
        "proj_out": (D, cells * model.latent_channels),
    }
    blocks = {
        f"transformer_blocks.{number}.{name}": sizes
        for number in range(model.num_layers)
        for name, sizes in block.items()
    }
    return {**around, **blocks}


def split_count(model: ModelConfig) -> int:
    """Return the parameters that tensor parallelism splits: attention and MLP of every block."""
    parts = (".attn1.", ".attn2.", ".ff.")
    return sum(
        inputs * outputs
        for name, (inputs, outputs) in linear_layers(model).items()
        if any(part in name for part in parts)
    )


def adapted_layers(model: ModelConfig, targets: list[str]) -> dict[str, tuple[int, int]]:
    """Return the linear layers that `targets` name, in full or by how they end."""
    endings = tuple(f".{target}" for target in targets)
    return {
        name: sizes for name, sizes in linear_layers(model).items() if f".{name}".endswith(endings)
    }


def adapter_count(config: Config) -> int:
    """Return the parameters that are added to the model's own."""
    if config.peft.kind is PeftKind.none:
        return 0
    layers = adapted_layers(config.model, config.peft.targets).values()
    return config.peft.rank * sum(inputs + outputs for inputs, outputs in layers)


def trained_count(config: Config) -> int:
    """Return the parameters that training changes: all of them, or those of the adapters."""
    return adapter_count(config) or parameter_count(config.model)


def held_count(config: Config) -> int:
    """Return the parameters that training holds."""
    return adapter_count(config) + parameter_count(config.model)
