"""Computing again in the backward pass, and moving away, change memory and nothing else."""

import pytest
import torch
from live_memory import LiveMemory
from small_runs import initialised, small_config

from cosmos_hydra.config import Attention, ParallelConfig, Recompute
from cosmos_hydra.engines.torch.attention import set_attention
from cosmos_hydra.engines.torch.kernels import kernel_of
from cosmos_hydra.engines.torch.offload import Offload
from cosmos_hydra.engines.torch.recompute import apply_recompute

CPU = torch.device("cpu")
Gradients = dict[str, torch.Tensor]


def gradients_with(parallel: ParallelConfig, is_compiled: bool = False) -> tuple[Gradients, int]:
    """Return every gradient of one pass and the bytes alive before the backward pass."""
    from pathlib import Path

    model = small_config(Path(), "model.num_layers=3").model
    transformer = initialised(model, seed=0)
    for parameter in transformer.parameters():  # zeros would hide gradients
        parameter.data += 0.05 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
        )
    set_attention(transformer, kernel_of(Attention.flash))
    apply_recompute(transformer, parallel, CPU)
    if is_compiled:
        for block in transformer.transformer_blocks:
            block.compile()
    generator = torch.Generator().manual_seed(1)
    latent_BCFHW = torch.randn(1, model.latent_channels + 1, 2, 16, 16, generator=generator)
    text_BTD = torch.randn(1, model.text_tokens, model.text_dim, generator=generator)
    with LiveMemory() as memory:
        out = transformer(latent_BCFHW, torch.tensor([0.3]), text_BTD, fps=24.0, return_dict=False)[
            0
        ]
        alive = memory.live
    out.square().mean().backward()
    return {name: p.grad for name, p in transformer.named_parameters()}, alive


@pytest.fixture(scope="module")
def plain() -> tuple[Gradients, int]:
    return gradients_with(ParallelConfig())


def assert_same(found: Gradients, wanted: Gradients) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in found if not torch.equal(found[name], wanted[name])] == []


def test_each_policy_keeps_less_and_gives_the_same_gradients(plain: tuple[Gradients, int]) -> None:
    wanted, most = plain
    kept = [most]
    for policy in (Recompute.save_matmul, Recompute.save_attention, Recompute.full):
        found, alive = gradients_with(ParallelConfig(recompute=policy))
        assert_same(found, wanted)
        kept.append(alive)
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 4


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
    found, _ = gradients_with(ParallelConfig(recompute=policy), is_compiled=True)
    for name, gradient in plain[0].items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


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
