"""FlashAttention 4 as an operator; without a GPU, its kernels are plain arithmetic here."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import initialised, small_config

from cosmos_hydra.config import Attention, ParallelConfig, Recompute
from cosmos_hydra.engines.torch import flash4
from cosmos_hydra.engines.torch import kernels as kernels_module
from cosmos_hydra.engines.torch.attention import set_attention
from cosmos_hydra.engines.torch.kernels import effective_attention, kernel_of
from cosmos_hydra.engines.torch.recompute import apply_recompute
from cosmos_hydra.errors import ConfigError

CPU = torch.device("cpu")
Tensors = tuple[torch.Tensor, ...]


def forward(*qkv_BLNK: torch.Tensor, return_lse: bool) -> Tensors:
    assert return_lse
    q, k, v = (x.transpose(1, 2) for x in qkv_BLNK)
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    return (scores.softmax(-1) @ v).transpose(1, 2).contiguous(), scores.logsumexp(-1).float(), None


def backward(*given: torch.Tensor) -> Tensors:
    *tensors_BLNK, sums = given
    q, k, v, out, grad = (x.transpose(1, 2) for x in tensors_BLNK)
    scale = q.shape[-1] ** -0.5
    shares = (q @ k.transpose(2, 3) * scale - sums[..., None]).exp().to(q.dtype)
    d_shares = grad @ v.transpose(2, 3) - (grad * out).sum(-1, keepdim=True)
    d_scores = shares * d_shares * scale
    grads = (d_scores @ k, d_scores.transpose(2, 3) @ q, shares.transpose(2, 3) @ grad)
    likes = (torch.empty_like(x) for x in tensors_BLNK[:3])
    return tuple(like.copy_(x.transpose(1, 2)) for like, x in zip(likes, grads, strict=True))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Put plain arithmetic in the kernels' place and count by tokens attended to."""
    counted: Counter = Counter()

    def counting(*qkv_BLNK: torch.Tensor, **options: Any) -> Tensors:
        counted[qkv_BLNK[1].shape[1]] += 1
        return forward(*qkv_BLNK, **options)

    monkeypatch.setattr(flash4, "kernels", lambda: (counting, backward))
    return counted


def inputs() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, tokens, 3, 8).transpose(1, 2).requires_grad_() for tokens in (7, 5, 5)]


def test_it_is_attention_with_its_gradients(calls: Counter) -> None:
    results = {}
    for attention in (Attention.flash4, Attention.math):
        given = inputs()
        out_BNLK = kernel_of(attention)(*given)
        grads = torch.autograd.grad(out_BNLK, given, torch.ones_like(out_BNLK).cumsum(-1))
        results[attention] = [out_BNLK, *grads]
    for found, wanted in zip(results[Attention.flash4], results[Attention.math], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_compilers_are_told_what_it_returns(calls: Counter) -> None:
    torch.library.opcheck(flash4.flash4, tuple(inputs()))
    contiguous = [x.detach().contiguous().requires_grad_() for x in inputs()]
    torch.library.opcheck(flash4.flash4, tuple(contiguous))


@pytest.mark.parametrize(
    ("policy", "over_clip", "over_text"),
    [
        (Recompute.none, 3, 3),
        (Recompute.save_matmul, 3, 3),
        (Recompute.save_mlp, 3, 6),
        (Recompute.save_attention, 3, 6),
        (Recompute.full, 6, 6),
    ],
    ids=str,
)
def test_recompute_keeps_what_it_keeps_of_other_kernels(
    calls: Counter, policy: Recompute, over_clip: int, over_text: int
) -> None:
    model = small_config(Path(), "model.num_layers=3").model
    transformer = initialised(model, seed=0)
    set_attention(transformer, kernel_of(Attention.flash4))
    apply_recompute(transformer, ParallelConfig(recompute=policy), CPU)
    latent_BCFHW = torch.randn(1, model.latent_channels + 1, 2, 8, 8)
    text_BTD = torch.randn(1, model.text_tokens, model.text_dim)
    out = transformer(latent_BCFHW, torch.tensor([0.3]), text_BTD, fps=24.0, return_dict=False)[0]
    out.square().mean().backward()
    assert calls == {32: over_clip, model.text_tokens: over_text}


def test_where_it_is_missing_the_line_says_how_to_get_it() -> None:
    assert not flash4.is_installed()
    with pytest.raises(ConfigError) as error:
        effective_attention(small_config(Path(), "parallel.attention=flash4"), CPU)
    assert str(error.value) == (
        "parallel.attention=flash4 needs FlashAttention 4, which is not installed; run "
        "`pip install 'cosmos-hydra[flash4]'`, or use parallel.attention=auto"
    )


def test_a_cpu_does_not_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash4, "is_installed", lambda: True)
    assert effective_attention(small_config(Path()), CPU) is Attention.flash


def test_on_hopper_auto_takes_it_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for is_installed, first in ((True, Attention.flash4), (False, Attention.cudnn)):
        monkeypatch.setattr(flash4, "is_installed", lambda found=is_installed: found)
        assert kernels_module._preferred(torch.device("cuda"))[0] is first
