"""AutoencoderKLCosmos with its slow parts done otherwise: same class, same weights, same results.

diffusers copies every picture once or twice in front of each convolution, has one kernel for each
of the 28 steps of the wavelet transform, and its attention over 512 channels finds no fast kernel.
Here some modules of one instance are given another `forward`.
Legend: B batch, C channels, F frames, H W height/width, L tokens of a frame, P patch edge.
"""

from collections.abc import Callable, Collection
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

MAX_SCORES = 1 << 28  # attention scores at once, 1 GiB


class Way(Enum):
    """What is done otherwise."""

    channels_last = "channels innermost in memory"
    flat = "convolutions over two dimensions, which is all they have"
    norms = "norms that read memory in its order; for channels_last with compile"
    matmul = "attention in a frame as two matrix products"
    patches = "the wavelet transform as one matrix product"
    compile = "torch.compile"


# as eager code
EAGER = frozenset({Way.channels_last, Way.flat, Way.matmul, Way.patches})
# 20 s to compile, then four times as fast
COMPILED = EAGER | {Way.norms, Way.compile}


def speed_up(autoencoder: Any, ways: Collection[Way]) -> None:
    """Change an autoencoder in place, except for compiling it, which is done by who calls it.

    Its weights keep their names and values. `channels_last` is meant to go with `flat`. Compiling
    implies `patches`: Dynamo takes diffusers' `(-1) ** tensor` for `-(1 ** tensor)` (seen with
    torch 2.13), and all latents come out wrong.
    """
    from diffusers.models.autoencoders import autoencoder_kl_cosmos as cosmos

    has_patches = bool({Way.patches, Way.compile} & set(ways))
    if Way.channels_last in ways:
        autoencoder.to(memory_format=torch.channels_last_3d)
    for module in autoencoder.modules():
        if isinstance(module, cosmos.CosmosCausalConv3d) and Way.flat in ways:
            _replace(module, _flat_convolution)
        elif isinstance(module, cosmos.CosmosCausalGroupNorm) and Way.norms in ways:
            _replace(module, _norm)
        elif isinstance(module, cosmos.CosmosCausalAttention):
            is_spatial = isinstance(module.processor, cosmos.CosmosSpatialAttentionProcessor2_0)
            if is_spatial and Way.matmul in ways:
                module.processor = _attend_in_frames
        elif isinstance(module, cosmos.CosmosPatchEmbed3d) and has_patches:
            channels = autoencoder.config.in_channels
            _replace(module, _patch, _patch_matrix(module, channels))
        elif isinstance(module, cosmos.CosmosUnpatcher3d) and has_patches:
            channels = autoencoder.config.out_channels
            _replace(module, _unpatch, _unpatch_matrix(module, channels))


def compiled(function: Callable[..., Any], ways: Collection[Way]) -> Callable[..., Any]:
    """Return a function of one shape of tensors, compiled if that is among the ways."""
    return torch.compile(function, dynamic=False) if Way.compile in ways else function


def _replace(module: nn.Module, forward: Callable[..., torch.Tensor], *more: torch.Tensor) -> None:
    module.forward = partial(forward, module, *more)


def _flat_convolution(conv: Any, x_BCFHW: torch.Tensor) -> torch.Tensor:
    """Convolve over the picture or over time; no layer does both.

    Before the first frame are copies of it. Memory stays in the order B F H W C.
    """
    if conv.kernel_size[0] == 1:
        out_BCHW = functional.conv2d(
            x_BCFHW.transpose(1, 2).flatten(0, 1),
            conv.weight[:, :, 0],
            conv.bias,
            conv.stride[1:],
            conv.spatial_pad[0],
        )
        return out_BCHW.unflatten(0, (len(x_BCFHW), -1)).transpose(1, 2)
    x_BFHWC = x_BCFHW.permute(0, 2, 3, 4, 1)
    padded_BFHWC = torch.cat([x_BFHWC[:, :1]] * conv.temporal_pad + [x_BFHWC], dim=1)
    padded_BCFL = padded_BFHWC.flatten(2, 3).permute(0, 3, 1, 2)
    weight = conv.weight.flatten(3)
    out_BCFL = functional.conv2d(padded_BCFL, weight, conv.bias, (conv.stride[0], 1))
    return out_BCFL.unflatten(3, x_BCFHW.shape[3:])


def _norm(norm: Any, x_BCFHW: torch.Tensor) -> torch.Tensor:
    """Normalise each frame; there is one group.

    Inductor reads the elements of a split reduction in the order of the dimensions.
    """
    x_BFHWC = x_BCFHW.permute(0, 2, 3, 4, 1)
    variance_BF1, mean_BF1 = torch.var_mean(
        x_BFHWC.flatten(2).float(), dim=2, correction=0, keepdim=True
    )
    scale_BF111 = (variance_BF1 + norm.norm.eps).rsqrt()[..., None, None]
    normed_BFHWC = (x_BFHWC.float() - mean_BF1[..., None, None]) * scale_BF111
    out_BFHWC = normed_BFHWC * norm.norm.weight.float() + norm.norm.bias.float()
    return out_BFHWC.to(x_BCFHW.dtype).permute(0, 4, 1, 2, 3)


def _attend_in_frames(
    attn: Any, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return what CosmosSpatialAttentionProcessor2_0 does; one head, a frame at a time."""
    frames, height, width = hidden_states.shape[2:]
    normed = attn.norm(hidden_states)
    q_NLC, k_NLC, v_NLC = (
        part(normed).permute(0, 2, 3, 4, 1).flatten(2, 3).flatten(0, 1)
        for part in (attn.to_q, attn.to_k, attn.to_v)
    )
    rows = max(1, MAX_SCORES // (height * width))
    out_NLC = torch.stack(
        [
            torch.cat([_attend(part_LC, k_LC, v_LC) for part_LC in q_LC.split(rows)])
            for q_LC, k_LC, v_LC in zip(q_NLC, k_NLC, v_NLC, strict=True)
        ]
    )
    out_BFHWC = out_NLC.unflatten(1, (height, width)).unflatten(0, (-1, frames))
    return attn.to_out[0](out_BFHWC.permute(0, 4, 1, 2, 3)) + hidden_states


def _attend(q_LC: torch.Tensor, k_LC: torch.Tensor, v_LC: torch.Tensor) -> torch.Tensor:
    # the scores stay in float32, as in the fused kernels
    scores_LL = _scores(q_LC, k_LC).mul_(q_LC.shape[1] ** -0.5)
    return scores_LL.softmax(dim=-1).to(v_LC.dtype) @ v_LC


def _scores(q_LC: torch.Tensor, k_LC: torch.Tensor) -> torch.Tensor:
    if q_LC.dtype is torch.float32 or not q_LC.is_cuda:
        return q_LC.float() @ k_LC.float().T
    return torch.mm(q_LC, k_LC.T, out_dtype=torch.float32)


def _patch(embed: Any, matrix: torch.Tensor, x_BCFHW: torch.Tensor) -> torch.Tensor:
    p = embed.patch_size
    first_BCPHW = x_BCFHW[:, :, :1].expand(-1, -1, p, -1, -1)
    x_BCFHW = torch.cat([first_BCPHW, x_BCFHW[:, :, 1:]], dim=2)
    split = x_BCFHW.unflatten(4, (-1, p)).unflatten(3, (-1, p)).unflatten(2, (-1, p))
    patches_BFHWC = split.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)
    return (patches_BFHWC @ matrix.to(x_BCFHW)).permute(0, 4, 1, 2, 3)


def _unpatch(embed: Any, matrix: torch.Tensor, x_BCFHW: torch.Tensor) -> torch.Tensor:
    p = embed.patch_size
    patches_BFHWC = x_BCFHW.permute(0, 2, 3, 4, 1) @ matrix.to(x_BCFHW)
    split = patches_BFHWC.unflatten(4, (-1, p, p, p))
    video_BCFHW = split.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)
    return video_BCFHW[:, :, p - 1 :]


@torch.no_grad()
def _patch_matrix(embed: Any, channels: int) -> torch.Tensor:
    """Return what the module makes of every possible pixel of a patch, [pixels, coefficients]."""
    p = embed.patch_size
    basis = torch.eye(channels * p**3, device=embed.wavelets.device)
    # behind a black first frame, which is treated otherwise
    video = functional.pad(basis.view(-1, channels, p, p, p), (0, 0, 0, 0, 1, 0))
    return _in_float32(embed, video)[:, :, 1, 0, 0]


@torch.no_grad()
def _unpatch_matrix(embed: Any, channels: int) -> torch.Tensor:
    """Return the pixels that the module makes of every coefficient, [coefficients, pixels]."""
    p = embed.patch_size
    basis = torch.eye(channels * p**3, device=embed.wavelets.device)
    patches = functional.pad(basis[:, :, None, None, None], (0, 0, 0, 0, 1, 0))
    return _in_float32(embed, patches)[:, :, -p:].flatten(1)


def _in_float32(embed: Any, x_BCFHW: torch.Tensor) -> torch.Tensor:
    dtype = embed.wavelets.dtype
    embed.float()
    out = embed(x_BCFHW)
    embed.to(dtype)
    return out
