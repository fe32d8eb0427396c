"""How much memory training and generation take, estimated from the config before anything is built.

Counted is what autograd keeps of the network as this project runs it: float32 weights, autocast
to bf16 (its copies of the weights too), attention that never holds an L x L matrix.
Legend: stream = channels of all tokens of a micro-batch; H W latent height/width. Sizes are bytes,
and GB = 1e9 bytes in `Memory`.
"""

from dataclasses import dataclass
from math import prod

from cosmos_hydra.config import Config, Linears, Precision, Recompute, StatePrecision, TokenizerKind
from cosmos_hydra.data.clips import latent_shape
from cosmos_hydra.engines.torch.checkpoint import bytes_per_parameter
from cosmos_hydra.engines.torch.degrees import Degrees, token_count
from cosmos_hydra.models.fast_autoencoder import MAX_SCORES
from cosmos_hydra.models.size import (
    held_count,
    parameter_count,
    split_count,
    trained_count,
    width,
)

FLOAT32 = 4
# bytes of a number of a moment; 8 bits and a 256th of their scale
MOMENT = {StatePrecision.fp32: 4, StatePrecision.bf16: 2, StatePrecision.int8: 1 + 4 / 256}


@dataclass(frozen=True)
class _Cost:
    """What a precision costs, in bytes per number of the stream."""

    # a number of the computation
    element: int
    # what a block keeps for its backward pass, MLP aside: float32 norms, copies to compute with
    block: int
    # what it keeps per channel of a text token
    text: int
    # what the head keeps
    head: int
    # the most alive at once in a forward pass that keeps nothing
    forward: int


COSTS = {
    Precision.bf16: _Cost(element=2, block=86, text=14, head=10, forward=39),
    Precision.fp32: _Cost(element=4, block=96, text=16, head=12, forward=40),
}
# share of that which compiled blocks keep, as norms, rotation and GELU are made again from their
# inputs; on an H200 7b took 124 GB with recompute=save_mlp
COMPILED = 0.55
GENERATION_FORWARD = 32  # with weights that are bf16 themselves
FORWARD_MLP = 18  # beside the MLP, where that needs most
INPUT = 4  # the input of a block, float32 in both precisions
OUTSIDE = 12  # the position embedding before and after its norm, and its gradient
# what a rank of tensor parallelism has of the tokens of all: inputs of two attentions and the MLP
# in float32, and five copies to compute with
GATHERED_TOKENS = 22
LATENTS = 6  # float32 tensors like the latent, in the loss and around it
TEXT = 4  # a number of the text, in float32

# AutoencoderKLCosmos as released, decoding; counted over its live tensors at several clip sizes
DECODER_PARAMETERS = 105.7e6
# most numbers alive per pixel of a frame where convolutions need most: as diffusers has them, and
# as they run on CUDA, where 31 are counted and 37 were measured on an H200, with workspaces
DECODER_NUMBERS, CUDA_DECODER_NUMBERS = 36, 34
ATTENTION_BYTES = 28  # bytes per pixel beside its spatial attention, which holds scores
PIXELS_OF_A_CELL = 512

# What PyTorch takes beside tensors: context and workspaces, and a share for gaps between tensors
# that come and go. To be measured on the device: what nvidia-smi shows less the live tensors.
CUDA_GB = 1.0
CUDA_GAPS = 0.02
CPU_GB = 0.3


@dataclass(frozen=True)
class Memory:
    """Memory of one device at the moment when most is needed.

    `activations_gb` is what that moment needs beside weights, gradients and optimizer state: less
    than all activations where they are gone before the last gradients come.
    """

    weights_gb: float
    gradients_gb: float
    optimizer_gb: float
    activations_gb: float
    other_gb: float
    checkpoint_gb: float = 0.0  # the copy that is being written while training goes on

    @property
    def state_gb(self) -> float:
        """Return what does not depend on the clip."""
        return self.weights_gb + self.gradients_gb + self.optimizer_gb

    @property
    def total_gb(self) -> float:
        return self.state_gb + self.activations_gb + self.other_gb + self.checkpoint_gb

    def __str__(self) -> str:
        """Return the breakdown as one line."""
        parts = {name.removesuffix("_gb"): amount for name, amount in vars(self).items()}
        shown = ", ".join(f"{name} {gb(amount)}" for name, amount in parts.items() if amount)
        return f"{gb(self.total_gb)} GB ({shown})"


def gb(amount: float) -> str:
    """Return an amount of GB as shown to users."""
    return f"{amount:.0f}" if amount >= 10 else f"{amount:.2g}"


@dataclass(frozen=True)
class Share:
    """What one of several ranks holds, as parts of the whole."""

    state: float = 1.0  # of weights, gradients and moments
    tokens: float = 1.0  # of what is kept of a clip
    dp: int = 1  # ranks that share the samples of a step
    gathered_bytes: float | None = None  # weights put together to compute with; None = its own


WHOLE = Share()


def share_of(config: Config, degrees: Degrees, precision: Precision) -> Share:
    """Return what a rank of a mesh holds, by its largest parts."""
    if degrees.world_size == 1:
        return WHOLE
    model, parallel = config.model, config.parallel
    split = split_count(model) / parameter_count(model)
    of_tp = split / degrees.tp + 1 - split
    block = of_tp * parameter_count(model) / model.num_layers
    shards = degrees.dp_shard * degrees.cp
    shared = degrees.cp * (degrees.tp if parallel.sequence_parallel else 1)
    # this block, the next one, and the gradient of one before ranks add it up in float32
    gathered = block * (3 * COSTS[precision].element + FLOAT32)
    if parallel.sequence_parallel and degrees.tp > 1:
        stream = config.trainer.micro_batch_size * token_count(config) * width(model) / degrees.cp
        gathered += GATHERED_TOKENS * (1 - 1 / degrees.tp) * stream
    return Share(of_tp / shards, 1 / shared, degrees.dp, gathered)


def estimate_training(
    config: Config, device_type: str, precision: Precision, share: Share = WHOLE
) -> Memory:
    """Return the memory of post_train on one device; `precision` is bf16 or fp32."""
    trained = share.state * trained_count(config)
    gradients = FLOAT32 * trained
    peak = max(_step_bytes(config, device_type, precision, share), gradients)
    if config.trainer.preview_every and _has_tokenizer(config):
        peak = max(peak, _preview_bytes(config, device_type, precision, share))
    return _memory(
        device_type,
        weights=FLOAT32 * share.state * held_count(config),
        gradients=gradients,
        optimizer=2 * MOMENT[config.optim.state] * trained,
        activations=peak - gradients,
        # a GPU's copy lies in main memory
        checkpoint=bytes_per_parameter(config.optim.state) * trained if device_type == "cpu" else 0,
    )


def estimate_generation(config: Config, device_type: str, precision: Precision) -> Memory:
    """Return the memory of generate on one device; the text encoder is gone by then."""
    # on a CPU the weights are float32 before they are anything else
    element = FLOAT32 if device_type == "cpu" else COSTS[precision].element
    forward = GENERATION_FORWARD if precision is Precision.bf16 else COSTS[precision].forward
    sampling = _forward_bytes(config, precision, _sampling_batch(config), forward, WHOLE)
    return _memory(
        device_type,
        weights=element * parameter_count(config.model)
        + _decoder_weight_bytes(config, device_type),
        activations=max(sampling, _decoding_bytes(config, device_type)),
    )


def _memory(
    device_type: str,
    weights: float,
    activations: float,
    gradients: float = 0,
    optimizer: float = 0,
    checkpoint: float = 0,
) -> Memory:
    other = CPU_GB if device_type == "cpu" else CUDA_GB + CUDA_GAPS * activations / 1e9
    state = (weights / 1e9, gradients / 1e9, optimizer / 1e9)
    return Memory(*state, activations / 1e9, other, checkpoint / 1e9)


def _step_bytes(config: Config, device_type: str, precision: Precision, share: Share) -> float:
    """Return the most that a training step holds beside weights and optimizer state."""
    model, cost, batch = config.model, COSTS[precision], config.trainer.micro_batch_size
    stream = share.tokens * batch * token_count(config) * width(model)
    text = TEXT * batch * model.text_tokens * model.text_dim
    around = OUTSIDE * stream + LATENTS * _latent_bytes(config, batch) + text
    backward = around + cost.element * model.mlp_ratio * stream
    gradients = FLOAT32 * share.state * trained_count(config)
    copies = _copied_weight_bytes(config, precision, share)
    block = _block_bytes(config, precision, share)
    if share.gathered_bytes is None:
        block += copies / model.num_layers
    else:
        around += copies
        copies = 0
    whole = _whole_blocks(config)
    recomputing = model.num_layers - whole
    offloaded = config.parallel.offload_activations and device_type == "cuda"
    here = 0 if offloaded else 1  # share of what blocks save that stays on the device
    kept, recomputed, inputs, forward = block, 0.0, 0.0, 0.0
    if recomputing:
        kept = _kept_bytes(config, precision, share)
        recomputed = block - (kept - INPUT * stream)
        inputs = recomputing * (kept - (1 - here) * INPUT * stream)
        forward = inputs + _forward_bytes(config, precision, batch, cost.forward, share) + copies
    forward = max(forward, inputs + here * whole * block + around + cost.head * stream)
    # the backward pass begins with the last block and ends with the first, whose gradients come
    # when what it kept is gone
    last = recomputed if not whole else (1 - here) * block
    begin = inputs + here * whole * block + last + backward
    end = kept + recomputed + backward
    done = gradients / model.num_layers
    # with some blocks whole, the first recomputation comes when their gradients are there
    middle = inputs + recomputed + backward + whole * done if recomputing else 0.0
    # gradients of earlier batches of the step are there
    if config.trainer.global_batch_size // share.dp > batch:
        return gradients + max(forward, begin, middle, end)
    return max(forward, begin, middle, gradients - done + end)


def _whole_blocks(config: Config) -> int:
    """Return how many blocks keep all that autograd asks for."""
    parallel, layers = config.parallel, config.model.num_layers
    is_none = parallel.recompute is Recompute.none
    return layers if is_none else min(layers, parallel.recompute_except)


def _kept_bytes(config: Config, precision: Precision, share: Share) -> float:
    """Return what a block that computes again keeps of a micro-batch."""
    model, element = config.model, COSTS[precision].element
    tokens = share.tokens * config.trainer.micro_batch_size * token_count(config)
    text = config.trainer.micro_batch_size * model.text_tokens
    stream = tokens * width(model)
    kept = float(INPUT * stream)
    recompute = config.parallel.recompute
    output = element * stream
    attention = output + FLOAT32 * tokens * model.num_heads
    if recompute is not Recompute.full:
        kept += attention
    if recompute is Recompute.save_mlp:
        kept += output
    if recompute is Recompute.save_matmul:
        # cross-attention; queries, keys, values, their outputs; keys and values of the text; both
        # of the MLP
        kept += attention + (6 + model.mlp_ratio + 1) * output
        kept += element * 2 * text * width(model)
    return kept


def _block_bytes(config: Config, precision: Precision, share: Share) -> float:
    """Return what one block keeps of a micro-batch."""
    model, cost, batch = config.model, COSTS[precision], config.trainer.micro_batch_size
    of_a_number = cost.block + 2 * cost.element * model.mlp_ratio
    if config.parallel.compile:
        of_a_number *= COMPILED
    of_a_text_token = cost.text * width(model)
    if precision is Precision.bf16:  # keys and values copy their input
        of_a_text_token += 2 * cost.element * model.text_dim
    stream = share.tokens * token_count(config) * width(model)
    return batch * (of_a_number * stream + of_a_text_token * model.text_tokens)


def _forward_bytes(
    config: Config, precision: Precision, batch: int, forward: int, share: Share
) -> float:
    """Return the most alive at once in a forward pass that keeps nothing."""
    in_mlp = FORWARD_MLP + 2 * COSTS[precision].element * config.model.mlp_ratio
    stream = share.tokens * batch * token_count(config) * width(config.model)
    return max(forward, in_mlp) * stream + LATENTS * _latent_bytes(config, batch)


def _preview_bytes(config: Config, device_type: str, precision: Precision, share: Share) -> float:
    """Return the most that sampling and decoding hold beside weights and optimizer state."""
    forward = COSTS[precision].forward
    sampling = _forward_bytes(config, precision, _sampling_batch(config), forward, share)
    return max(
        sampling + _copied_weight_bytes(config, precision, share),
        _decoding_bytes(config, device_type) + _decoder_weight_bytes(config, device_type),
    )


def _sampling_batch(config: Config) -> int:
    return 2 if config.generate.guidance else 1


def _decoding_bytes(config: Config, device_type: str) -> float:
    if config.model.tokenizer.kind is TokenizerKind.toy:
        return 0
    _, frames, H, W = latent_shape(config.data, config.model.latent_channels)
    pixels = frames * H * W * PIXELS_OF_A_CELL
    is_cuda = device_type == "cuda"
    scores = min((H * W) ** 2, MAX_SCORES) if is_cuda else frames * (H * W) ** 2
    numbers = CUDA_DECODER_NUMBERS if is_cuda else DECODER_NUMBERS
    convolutions = numbers * _decoder_element(device_type) * pixels
    # the scores and their softmax
    return max(convolutions, 2 * FLOAT32 * scores + ATTENTION_BYTES * pixels)


def _decoder_weight_bytes(config: Config, device_type: str) -> float:
    is_toy = config.model.tokenizer.kind is TokenizerKind.toy
    return 0 if is_toy else DECODER_PARAMETERS * _decoder_element(device_type)


def _decoder_element(device_type: str) -> int:
    return FLOAT32 if device_type == "cpu" else 2


def _has_tokenizer(config: Config) -> bool:
    tokenizer = config.model.tokenizer
    return tokenizer.kind is TokenizerKind.toy or tokenizer.path is not None


def _latent_bytes(config: Config, batch: int) -> float:
    return FLOAT32 * batch * prod(latent_shape(config.data, config.model.latent_channels))


def _copied_weight_bytes(config: Config, precision: Precision, share: Share) -> float:
    """Return what autocast keeps of the weights until the forward pass is over."""
    if share.gathered_bytes is not None:
        return share.gathered_bytes
    if precision is not Precision.bf16:
        return 0
    # in float8 each product rounds its own copy
    is_float8 = config.parallel.linears is Linears.float8
    rounded = split_count(config.model) if is_float8 else 0
    return 2 * (parameter_count(config.model) - rounded)
