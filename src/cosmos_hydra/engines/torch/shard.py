"""Apply parallelism to a transformer, in this order: float8, tensor parallel, tokens, recompute,
compile, FSDP. Nothing else knows the order.

Gradients come out as sums over all ranks: the loss of a rank is that of its samples over the
global number of samples, so nothing is averaged.
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from cosmos_hydra.config import Config, ParallelConfig, Precision
from cosmos_hydra.engines.torch.attention import Ulysses, set_attention
from cosmos_hydra.engines.torch.kernels import Kernel, effective_attention, kernel_of
from cosmos_hydra.engines.torch.linears import set_linears
from cosmos_hydra.engines.torch.mesh import Ranks
from cosmos_hydra.engines.torch.precision import effective_precision
from cosmos_hydra.engines.torch.recompute import apply_recompute
from cosmos_hydra.engines.torch.ring import Ring
from cosmos_hydra.engines.torch.sequence import Share, share_tokens


def parallelize(transformer: Any, config: Config, ranks: Ranks) -> None:
    """Change a transformer in place; its parameters may still be on the meta device."""
    mesh, degrees, parallel = ranks.mesh, ranks.degrees, config.parallel
    is_sequence_parallel = parallel.sequence_parallel and degrees.tp > 1
    set_linears(transformer, config, ranks.device, degrees.cp)
    if mesh is not None and degrees.tp > 1:
        _tensor_parallel(transformer, mesh["tp"], is_sequence_parallel)
    _set_attention(transformer, config, ranks)
    if degrees.cp > 1 or is_sequence_parallel:
        _share(transformer, ranks, is_sequence_parallel)
    apply_recompute(transformer, parallel, ranks.device)
    if parallel.compile:
        compile_blocks(transformer)
    if mesh is not None:
        _fully_shard(transformer, mesh, effective_precision(parallel.precision, ranks.device))


def compile_blocks(transformer: Any, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the blocks, which share one compiled function where their inputs are alike."""

    def exact(module: torch.nn.Module, inputs: Any, x_BFHWD: torch.Tensor) -> torch.Tensor:
        return x_BFHWD.float()  # as what every later block gets

    transformer.patch_embed.register_forward_hook(exact)
    for block in transformer.transformer_blocks:
        block.compile(backend=backend)


def eager(parallel: ParallelConfig) -> AbstractContextManager[Any]:
    """Return a context without compiled blocks: for inputs of other shapes than a step's."""
    # each new shape, and each pass without gradients, would be compiled for half a minute
    return torch.compiler.set_stance("force_eager") if parallel.compile else nullcontext()


def _tensor_parallel(transformer: Any, tp: DeviceMesh, is_sequence_parallel: bool) -> None:
    """Split heads and the MLP's hidden channels; between them tokens are split or replicated."""
    between = Shard(1) if is_sequence_parallel else Replicate()
    enter = PrepareModuleInput(input_layouts=(between,), desired_input_layouts=(Replicate(),))
    leave = RowwiseParallel(output_layouts=between)
    attention = {"to_q": ColwiseParallel(), "to_k": ColwiseParallel(), "to_v": ColwiseParallel()}
    plan: dict[str, ParallelStyle] = {}
    for name in ("attn1", "attn2"):
        plan |= {name: enter, f"{name}.to_out.0": leave}
        plan |= {f"{name}.{projection}": style for projection, style in attention.items()}
    plan |= {"ff": enter, "ff.net.0.proj": ColwiseParallel(), "ff.net.2": leave}
    for block in transformer.transformer_blocks:
        parallelize_module(block, tp, plan)


def _set_attention(transformer: Any, config: Config, ranks: Ranks) -> None:
    kernel = kernel_of(effective_attention(config, ranks.device))
    over_all: Kernel | None = None
    if ranks.cp is not None and ranks.degrees.cp > 1:
        needs_ring = ranks.degrees.needs_ring(config.model.num_heads)
        over_all = Ring(ranks.cp) if needs_ring else Ulysses(kernel, ranks.cp.get_group())
    set_attention(transformer, kernel, over_all)


def _share(transformer: Any, ranks: Ranks, is_sequence_parallel: bool) -> None:
    assert ranks.cp is not None
    assert ranks.cp_tp is not None
    cp = Share.of_rank(ranks.cp)
    group = ranks.cp_tp if is_sequence_parallel else ranks.cp
    share_tokens(transformer, Share.of_rank(group), cp, group.get_group())


def _fully_shard(transformer: Any, mesh: DeviceMesh, precision: Precision) -> None:
    is_copied = mesh["dp_replicate"].size() > 1
    axes = mesh["dp_replicate", "dp_shard_cp"] if is_copied else mesh["dp_shard_cp"]
    compute = torch.bfloat16 if precision is Precision.bf16 else torch.float32
    # inputs stay as they are: noise levels need float32, autocast casts the rest
    policy = MixedPrecisionPolicy(
        param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    # position tables are summed over three axes and normalised in float32
    fully_shard(transformer.learnable_pos_embed, mesh=axes, mp_policy=MixedPrecisionPolicy())
    for block in transformer.transformer_blocks:
        fully_shard(block, mesh=axes, mp_policy=policy)
    fully_shard(transformer, mesh=axes, mp_policy=policy)
    # its output is a view, which nothing here changes in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    for module in transformer.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # a plain sum, which gloo has too, and not NCCL's sum with a factor
            module.set_force_sum_reduction_for_comms(True)
