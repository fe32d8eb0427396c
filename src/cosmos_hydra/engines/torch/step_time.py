"""How long a training step takes on a GPU, from the config and the rates of the GPU's kernels.

Operations over rates and bytes over bandwidths are added up; only what FSDP sends is taken to go on
behind them. GPUs are those of one host. Legend: L tokens of a clip, D model width.
"""

from dataclasses import astuple, dataclass

from cosmos_hydra.config import Attention, Config, Linears, PeftKind, Recompute, StatePrecision
from cosmos_hydra.diffusion.generation import clip_passes
from cosmos_hydra.engines.torch.degrees import Degrees, token_count
from cosmos_hydra.engines.torch.gpus import Rates
from cosmos_hydra.models.size import forward_flop, parameter_count, trained_count, width

# bytes that all but linear layers and attention moves, per number of a block's stream in a forward
# pass; a backward pass moves twice that. From profiled steps of 7b on an H200.
EAGER_BYTES, COMPILED_BYTES = 530, 104
FLOAT8_BYTES = 64  # to scale and round what goes into linear layers
# bytes moved per trained parameter: fused AdamW; rounding at random takes many passes, or one when
# it is compiled
OPTIMIZER_BYTES = {StatePrecision.fp32: 28, StatePrecision.bf16: 310, StatePrecision.int8: 300}
COMPILED_OPTIMIZER_BYTES = {**OPTIMIZER_BYTES, StatePrecision.bf16: 36}
BACKWARD_PRODUCTS = 2.5  # of attention, over those forward: flash kernels make the scores again
GATHERS = 6  # all-gathers and reduce-scatters of tensor parallelism in a block's forward pass
EXCHANGES = 4  # of context parallelism in a forward pass: queries, keys, values, outputs
BF16, FLOAT32 = 2, 4


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, by what takes them."""

    attention: float
    linears: float
    elementwise: float
    optimizer: float
    communication: float

    @property
    def total_s(self) -> float:
        return float(sum(astuple(self)))


def step_time(config: Config, degrees: Degrees, rates: Rates) -> StepTime:
    """Return what a step of post_train takes on every rank of a mesh."""
    model, parallel = config.model, config.parallel
    clips = config.trainer.global_batch_size / degrees.dp
    work = clips / (degrees.cp * degrees.tp)  # this rank's, in clips
    stream = token_count(config) * width(model) * model.num_layers
    attention, linears = _flop(config)
    again = _blocks_again(config)
    forward, backward = _attention_rates(parallel.attention, rates)
    attention_again = again if parallel.recompute is Recompute.full else 0.0
    attention_s = attention * (1 + attention_again) / forward
    attention_s += BACKWARD_PRODUCTS * attention / backward
    # frozen weights get no gradient
    linear_passes = 3 if config.peft.kind is PeftKind.none else 2
    is_float8 = parallel.linears is Linears.float8
    linears_s = linears * (linear_passes + again * _linears_again(config))
    linears_s /= rates.float8 if is_float8 else rates.linears
    moved = COMPILED_BYTES if parallel.compile else EAGER_BYTES
    updated = COMPILED_OPTIMIZER_BYTES if parallel.compile else OPTIMIZER_BYTES
    moved += FLOAT8_BYTES if is_float8 else 0
    bandwidth = rates.memory_tb_per_s * 1e12
    trained = trained_count(config) / (degrees.dp_shard * degrees.cp * degrees.tp)
    computing = (
        work * attention_s / 1e12,
        work * linears_s / 1e12,
        work * (3 + again) * moved * stream / bandwidth,
        updated[config.optim.state] * trained / bandwidth,
    )
    link = rates.link_gb_per_s * 1e9
    waiting_s = clips * (2 + again) * _exchanged_bytes(degrees, stream) / link
    behind_s = _sharing_bytes(config, degrees) / link - sum(computing)
    return StepTime(*computing, waiting_s + max(0.0, behind_s))


def video_s(config: Config, rates: Rates, *, is_compiled: bool) -> float:
    """Return what the denoising of one video takes on one GPU, in bf16."""
    stream = token_count(config) * width(config.model) * config.model.num_layers
    attention, linears = _flop(config)
    computing_s = attention / _attention_rates(config.parallel.attention, rates)[0]
    computing_s = (computing_s + linears / rates.linears) / 1e12
    moved = COMPILED_BYTES if is_compiled else EAGER_BYTES
    pass_s = computing_s + moved * stream / (rates.memory_tb_per_s * 1e12)
    return clip_passes(config.generate) * pass_s


def _flop(config: Config) -> tuple[float, float]:
    """Return the operations of attention and of linear layers in one forward pass of a clip."""
    model, L = config.model, token_count(config)
    attention = 4.0 * L * (L + model.text_tokens) * width(model) * model.num_layers
    return attention, forward_flop(model, L) - attention


def _attention_rates(asked: Attention, rates: Rates) -> tuple[float, float]:
    best = next(iter(rates.attention))
    return rates.attention.get(asked, rates.attention[best])


def _blocks_again(config: Config) -> float:
    """Return the share of the blocks that compute something again in the backward pass."""
    if config.parallel.recompute is Recompute.none:
        return 0.0
    layers = config.model.num_layers
    return max(0, layers - config.parallel.recompute_except) / layers


def _linears_again(config: Config) -> float:
    """Return the share of a block's linear layers that are computed again."""
    ratio = config.model.mlp_ratio
    kept = {
        Recompute.save_mlp: ratio / (6 + 2 * ratio),  # the second of the MLP
        Recompute.save_matmul: 1.0,
    }
    return 1.0 - kept.get(config.parallel.recompute, 0.0)


def _exchanged_bytes(degrees: Degrees, stream: float) -> float:
    """Return what a rank that shares a clip with others sends in a pass over it."""
    tp, cp = degrees.tp, degrees.cp
    gathered = GATHERS * stream / cp * (tp - 1) / tp
    swapped = EXCHANGES * stream / (cp * tp) * (cp - 1) / cp
    return BF16 * (gathered + swapped)


def _sharing_bytes(config: Config, degrees: Degrees) -> float:
    """Return what a rank receives of weights, twice, and of gradients, in a step."""
    shards, copies = degrees.dp_shard * degrees.cp, degrees.dp_replicate
    weights = 2 * BF16 * parameter_count(config.model) * (shards - 1) / shards
    gradients = FLOAT32 * trained_count(config) * (1 - 1 / (shards * copies))
    return (weights + gradients) / degrees.tp
