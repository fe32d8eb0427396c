"""Whether batch and model divide as Megatron and Transformer Engine want; imports none of them."""

from cosmos_hydra.config import Config, Fp8
from cosmos_hydra.engines.torch.degrees import Degrees, token_count
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.models.size import width

FP8_DIVISOR = 16  # of every length of the matrices that Transformer Engine multiplies in FP8


def check_batch(config: Config, degrees: Degrees) -> None:
    """Raise ConfigError unless a step is a whole number of equal passes on every rank."""
    dp = degrees.dp
    total, micro = config.trainer.global_batch_size, config.trainer.micro_batch_size
    if total % (dp * micro):
        raise ConfigError(
            f"trainer.global_batch_size={total} is not divisible by trainer.micro_batch_size="
            f"{micro} on {dp} data-parallel ranks, as engine=nemo needs; use a multiple of "
            f"{dp * micro}"
        )


def check_fp8(config: Config, degrees: Degrees) -> None:
    """Raise ConfigError where engine.fp8 cannot multiply the matrices of a rank."""
    model = config.model
    lengths = {
        "the tokens of a clip over parallel.cp": token_count(config) / degrees.cp,
        "model.text_tokens": model.text_tokens,
        "model.text_dim": model.text_dim,
        "model.num_heads * model.head_dim over parallel.tp": width(model) / degrees.tp,
    }
    wrong = [
        f"engine.fp8={config.engine.fp8} needs multiples of {FP8_DIVISOR}, but {name} is "
        f"{length:g}; change that, or use engine.fp8=none"
        for name, length in lengths.items()
        if length % FP8_DIVISOR
    ]
    if wrong and config.engine.fp8 is not Fp8.none:
        raise ConfigError(*wrong)
