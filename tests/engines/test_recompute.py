"""Computing again in the backward pass, and moving away, change memory and nothing else."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from live_memory import LiveMemory
from small_runs import initialised, small_config

from cosmos_hydra.config import Attention, ParallelConfig, Recompute
from cosmos_hydra.engines.torch.attention import set_attention
from cosmos_hydra.engines.torch.kernels import kernel_of
from cosmos_hydra.engines.torch.offload import Offload
from cosmos_hydra.engines.torch.recompute import apply_recompute
from cosmos_hydra.engines.torch.shard import compile_blocks
from cosmos_hydra.models.size import width

CPU = torch.device("cpu")
Gradients = dict[str, torch.Tensor]


def gradients_with(parallel: ParallelConfig, backend: Any = None) -> tuple[Gradients, int]:
    """Return every gradient of one pass and the bytes alive before the backward pass.

    `backend` is one of torch.compile; None = not compiled.
    """
    model = small_config(Path(), "model.num_layers=3", "model.text_dim=64").model
    transformer = initialised(model, seed=0)
    for parameter in transformer.parameters():  # zeros would hide gradients
        parameter.data += 0.05 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
        )
    set_attention(transformer, kernel_of(Attention.flash))
    apply_recompute(transformer, parallel, CPU)
    if backend is not None:
        compile_blocks(transformer, backend)
    generator = torch.Generator().manual_seed(1)
    latent_BCFHW = torch.randn(1, model.latent_channels + 1, 2, 16, 16, generator=generator)
    text_BTD = torch.randn(1, model.text_tokens, model.text_dim, generator=generator)
    # no frame is compiled where such a mode is active
    with LiveMemory() if backend is None else nullcontext() as memory:
        out = transformer(latent_BCFHW, torch.tensor([0.3]), text_BTD, fps=24.0, return_dict=False)[
            0
        ]
        alive = memory.live if memory else saved_by_compiled(out)
    out.square().mean().backward()
    return {name: p.grad for name, p in transformer.named_parameters()}, alive


def saved_by_compiled(out: torch.Tensor) -> int:
    """Return the bytes that compiled functions keep for the backward pass, weights aside."""
    seen, ahead, sizes = set(), [out.grad_fn], {}
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        ahead += [before for before, _ in node.next_functions]
        if "CompiledFunction" in node.name():
            saved = (t for t in node.saved_tensors if not isinstance(t, torch.nn.Parameter))
            sizes |= {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    return sum(sizes.values())


@pytest.fixture(scope="module")
def plain() -> tuple[Gradients, int]:
    return gradients_with(ParallelConfig())


def assert_same(found: Gradients, wanted: Gradients) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in found if not torch.equal(found[name], wanted[name])] == []


def test_each_policy_keeps_less_and_gives_the_same_gradients(plain: tuple[Gradients, int]) -> None:
    wanted, most = plain
    kept = [most]
    for policy in list(Recompute)[1:]:
        found, alive = gradients_with(ParallelConfig(recompute=policy))
        assert_same(found, wanted)
        kept.append(alive)
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == len(Recompute)


def test_blocks_left_alone_keep_all(plain: tuple[Gradients, int]) -> None:
    wanted, most = plain
    kept = []
    for count in range(5):  # the last is more than there are
        found, alive = gradients_with(
            ParallelConfig(recompute=Recompute.full, recompute_except=count)
        )
        assert_same(found, wanted)
        kept.append(alive)
    assert kept == sorted(kept)
    assert kept[3] == kept[4] == most
    assert kept[1] - kept[0] == pytest.approx(kept[2] - kept[1])


@pytest.mark.slow
@pytest.mark.parametrize("policy", list(Recompute), ids=str)
def test_compiled_blocks_recompute_too(plain: tuple[Gradients, int], policy: Recompute) -> None:
    found, _ = gradients_with(ParallelConfig(recompute=policy), backend="inductor")
    for name, gradient in plain[0].items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_blocks_are_compiled_and_once_for_all(precision: torch.dtype) -> None:
    torch.compiler.reset()
    compiled: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        compiled.append(graph)
        return graph.forward

    with torch.autocast("cpu", precision, enabled=precision is torch.bfloat16):
        gradients_with(ParallelConfig(recompute=Recompute.save_attention, compile=True), backend)
    assert len(compiled) == 1


def kept_when_compiled(policy: Recompute) -> int:
    """Return the bytes that PyTorch's own partition of forward and backward pass keeps."""
    torch.compiler.reset()
    parallel = ParallelConfig(recompute=policy, compile=True)
    return gradients_with(parallel, "aot_eager_decomp_partition")[1]


def test_compiled_blocks_keep_what_the_policy_says_and_no_more() -> None:
    model = small_config(Path(), "model.num_layers=3", "model.text_dim=64").model
    outputs = 4 * 128 * width(model)  # of the 128 tokens of a block, in float32
    of_attention = outputs + 4 * 128 * model.num_heads
    more = kept_when_compiled(Recompute.save_mlp) - kept_when_compiled(Recompute.full)
    assert more == pytest.approx(3 * (of_attention + outputs), rel=0.05)


@pytest.mark.slow
def test_compiled_blocks_keep_less_with_each_policy() -> None:
    kept = [kept_when_compiled(policy) for policy in Recompute]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == len(Recompute)


def test_what_is_moved_comes_back_and_what_is_shared_stays() -> None:
    offload, moved = Offload(CPU), []
    own, shared, small = (
        torch.randn(size, requires_grad=True) for size in ((1024, 512), (1024, 512), (4, 4))
    )
    take, give = offload._out, offload._back

    def counting(tensor: torch.Tensor) -> object:
        moved.append(tensor.shape)
        return take(tensor)

    offload._out = counting  # type: ignore[method-assign]
    with offload.around([shared]):
        loss = (own * 2).square().sum() + shared.square().sum() + small.square().sum()
    loss.backward()
    assert give is not None
    assert moved == [(1024, 512)]
    assert own.grad is not None
    torch.testing.assert_close(own.grad, 8 * own.detach())
    assert shared.grad is not None
    torch.testing.assert_close(shared.grad, 2 * shared.detach())
