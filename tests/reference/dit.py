"""The Cosmos-1.0 diffusion transformer in plain PyTorch, slow, to compare the real one with.

Written from the published sizes and formulas, with the weight names of the original checkpoint
(`net.` left off); imports torch alone. Every small function is one statement about the model, so
that a test can replace it by a wrong one.
Legend: B batch, C channels, F latent frames, H W latent height/width, h w rows and columns of
tokens, L = F*h*w tokens, N heads, K head dim, D model width, T text tokens.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = dict[str, Tensor]
PATCH = 2  # rows and columns of a token; one frame
TIME_BASE_FPS = 24.0
QK_EPS = NORM_EPS = 1e-6


@dataclass(frozen=True)
class Sizes:
    """What the shapes of the weights do not say."""

    num_layers: int
    num_heads: int
    head_dim: int
    rope_scale: tuple[float, float, float] = (2.0, 1.0, 1.0)  # time, height, width


def forward(
    weights: Weights,
    sizes: Sizes,
    latent_BCFHW: Tensor,
    c_noise_B: Tensor,
    text_BTD: Tensor,
    padding_B1HW: Tensor,
    fps: float | None,
    condition_B1FHW: Tensor | None = None,
) -> Tensor:
    """Return the raw prediction, shaped like the latent, in the dtype of what is given.

    The padding mask may have any resolution.
    """
    frames, height, width = latent_BCFHW.shape[2:]
    grid = (frames, height // PATCH, width // PATCH)
    mask_B1FHW = nearest(padding_B1HW, height, width)[:, :, None].expand(-1, -1, frames, -1, -1)
    given_BCFHW = torch.cat(channels(latent_BCFHW, condition_B1FHW, mask_B1FHW), dim=1)
    x_BLD = patches(given_BCFHW) @ weights["x_embedder.proj.1.weight"].T
    lora_BD3, embedding_BD = time_vectors(weights, c_noise_B)
    positions_LD = learned_positions(weights, grid)
    angles_LK = rotary_angles(sizes, grid, fps).to(x_BLD)
    for index in range(sizes.num_layers):
        block = below(weights, f"blocks.block{index}.blocks.")
        x_BLD = with_positions(x_BLD, positions_LD, index)
        x_BLD = run_block(block, sizes, x_BLD, text_BTD, lora_BD3, embedding_BD, angles_LK)
    return unpatch(final_layer(weights, x_BLD, lora_BD3, embedding_BD), grid)


# input and output


def channels(latent: Tensor, condition: Tensor | None, padding: Tensor) -> list[Tensor]:
    return [latent, padding] if condition is None else [latent, condition, padding]


def nearest(mask_B1HW: Tensor, height: int, width: int) -> Tensor:
    rows = [row * mask_B1HW.shape[2] // height for row in range(height)]
    columns = [column * mask_B1HW.shape[3] // width for column in range(width)]
    return mask_B1HW[:, :, rows][:, :, :, columns]


def patches(x_BCFHW: Tensor) -> Tensor:
    """Return tokens, time slowest; in a token the channel is slowest."""
    frames, height, width = x_BCFHW.shape[2:]
    tokens = [
        patch_features(x_BCFHW[:, :, f, i : i + PATCH, j : j + PATCH])
        for f in range(frames)
        for i in range(0, height, PATCH)
        for j in range(0, width, PATCH)
    ]
    return torch.stack(tokens, dim=1)


def patch_features(patch_BCpq: Tensor) -> Tensor:
    return patch_BCpq.flatten(1)


def unpatch(tokens_BLE: Tensor, grid: tuple[int, int, int]) -> Tensor:
    frames, rows, columns = grid
    number = iter(range(tokens_BLE.shape[1]))
    out = tokens_BLE.new_empty(
        len(tokens_BLE), tokens_BLE.shape[2] // PATCH**2, frames, rows * PATCH, columns * PATCH
    )
    for f in range(frames):
        for i in range(0, rows * PATCH, PATCH):
            for j in range(0, columns * PATCH, PATCH):
                out[:, :, f, i : i + PATCH, j : j + PATCH] = cell(tokens_BLE[:, next(number)])
    return out


def cell(features_BE: Tensor) -> Tensor:
    """Return [B, C, rows, columns]: going out, unlike coming in, the channel is fastest."""
    return features_BE.unflatten(1, (PATCH, PATCH, -1)).permute(0, 3, 1, 2)


# noise level


def time_vectors(weights: Weights, c_noise_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the shift of all modulations [B, 3D] and the vector they are made of [B, D]."""
    waves_BD = sinusoid(c_noise_B, len(weights["affline_norm.weight"]))
    hidden_BD = silu(waves_BD @ weights["t_embedder.1.linear_1.weight"].T)
    lora_BD3 = hidden_BD @ weights["t_embedder.1.linear_2.weight"].T
    return lora_BD3, rms_norm(embedding_source(waves_BD, hidden_BD), NORM_EPS) * weights[
        "affline_norm.weight"
    ]


def embedding_source(waves_BD: Tensor, hidden_BD: Tensor) -> Tensor:
    return waves_BD


def sinusoid(c_noise_B: Tensor, width: int) -> Tensor:
    half = width // 2
    angles = [c_noise_B * 10000.0 ** (-i / half) for i in range(half)]
    return torch.stack([a.cos() for a in angles] + [a.sin() for a in angles], dim=1)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


# positions


def with_positions(x_BLD: Tensor, positions_LD: Tensor, block: int) -> Tensor:
    return x_BLD + positions_LD


def learned_positions(weights: Weights, grid: tuple[int, int, int]) -> Tensor:
    t, h, w = (weights[f"extra_pos_embedder.pos_emb_{axis}"] for axis in "thw")
    frames, rows, columns = grid
    return torch.stack(
        [
            unit(t[f] + h[i] + w[j])
            for f in range(frames)
            for i in range(rows)
            for j in range(columns)
        ]
    )


def unit(vector_D: Tensor) -> Tensor:
    norm = vector_D.square().sum().sqrt()
    return vector_D / (1e-6 + norm / math.sqrt(len(vector_D)))


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    space = head_dim // 6 * 2
    return head_dim - 2 * space, space, space


def ntk(scale: float, dim: int) -> float:
    return float(scale ** (dim / (dim - 2)))


def frame_time(frame: int, fps: float | None) -> float:
    return float(frame) if fps is None else frame / fps * TIME_BASE_FPS


def rotary_angles(sizes: Sizes, grid: tuple[int, int, int], fps: float | None) -> Tensor:
    """Return an angle for each pair of channels of each token, [L, K/2], float64."""
    frames, rows, columns = grid
    dims = axis_dims(sizes.head_dim)
    bases = [10000.0 * ntk(scale, dim) for scale, dim in zip(sizes.rope_scale, dims, strict=True)]

    def of_axis(position: float, axis: int) -> list[float]:
        dim, base = dims[axis], bases[axis]
        return [position * base ** (-2 * j / dim) for j in range(dim // 2)]

    angles = [
        joined(of_axis(frame_time(f, fps), 0), of_axis(i, 1), of_axis(j, 2))
        for f in range(frames)
        for i in range(rows)
        for j in range(columns)
    ]
    return torch.tensor(angles, dtype=torch.float64)


def joined(time: list[float], height: list[float], width: list[float]) -> list[float]:
    return time + height + width


def pairs(head_dim: int) -> list[tuple[int, int]]:
    """Return which channels of a head turn together."""
    return [(i, i + head_dim // 2) for i in range(head_dim // 2)]


def rotate(x_BNLK: Tensor, angles_LK: Tensor) -> Tensor:
    out = x_BNLK.clone()
    for number, (one, other) in enumerate(pairs(x_BNLK.shape[-1])):
        cos_L, sin_L = angles_LK[:, number].cos(), angles_LK[:, number].sin()
        a, b = x_BNLK[..., one], x_BNLK[..., other]
        out[..., one], out[..., other] = a * cos_L - b * sin_L, b * cos_L + a * sin_L
    return out


# blocks


def run_block(
    block: Weights,
    sizes: Sizes,
    x_BLD: Tensor,
    text_BTD: Tensor,
    lora_BD3: Tensor,
    embedding_BD: Tensor,
    angles_LK: Tensor,
) -> Tensor:
    def self_attention(x_BLD: Tensor) -> Tensor:
        return attention(below(block, "0.block.attn."), sizes, x_BLD, x_BLD, angles_LK)

    def cross_attention(x_BLD: Tensor) -> Tensor:
        return attention(below(block, "1.block.attn."), sizes, x_BLD, text_BTD, None)

    def mlp(x_BLD: Tensor) -> Tensor:
        hidden = gelu(x_BLD @ block["2.block.layer1.weight"].T)
        return hidden @ block["2.block.layer2.weight"].T

    parts = {0: self_attention, 1: cross_attention, 2: mlp}
    for number in order():
        modulation_BD3 = adaln(below(block, f"{number}.adaLN_modulation."), embedding_BD, lora_BD3)
        shift, scale, gate = chunks(modulation_BD3)
        x_BLD = x_BLD + gate * parts[number](layer_norm(x_BLD) * (1 + scale) + shift)
    return x_BLD


def order() -> tuple[int, int, int]:
    return 0, 1, 2


def adaln(weights: Weights, embedding_BD: Tensor, lora_BD3: Tensor) -> Tensor:
    low = silu(embedding_BD) @ weights["1.weight"].T
    return with_lora(low @ weights["2.weight"].T, lora_BD3)


def with_lora(modulation: Tensor, lora: Tensor) -> Tensor:
    return modulation + lora


def chunks(modulation_BD3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return shift, scale and gate, each [B, 1, D]."""
    shift, scale, gate = modulation_BD3[:, None].chunk(3, dim=-1)
    return shift, scale, gate


def attention(
    weights: Weights, sizes: Sizes, x_BLD: Tensor, source_BTD: Tensor, angles_LK: Tensor | None
) -> Tensor:
    def heads(x: Tensor, name: str) -> Tensor:
        return (
            (x @ weights[f"{name}.0.weight"].T).unflatten(2, (sizes.num_heads, -1)).transpose(1, 2)
        )

    q_BNLK = rms_norm(heads(x_BLD, "to_q"), QK_EPS) * weights["to_q.1.weight"]
    k_BNTK = rms_norm(heads(source_BTD, "to_k"), QK_EPS) * weights["to_k.1.weight"]
    v_BNTK = values(heads(source_BTD, "to_v"))
    if angles_LK is not None:
        q_BNLK, k_BNTK = rotate(q_BNLK, angles_LK), rotate(k_BNTK, angles_LK)
    scores = torch.einsum("bnlk,bntk->bnlt", q_BNLK, k_BNTK) * score_scale(sizes.head_dim)
    share = torch.exp(masked(scores, source_BTD))
    share = share / share.sum(dim=-1, keepdim=True)
    out_BLNK = torch.einsum("bnlt,bntk->blnk", share, v_BNTK)
    return out_BLNK.flatten(2) @ weights["to_out.0.weight"].T


def values(v_BNTK: Tensor) -> Tensor:
    return v_BNTK


def score_scale(head_dim: int) -> float:
    return 1 / math.sqrt(head_dim)


def masked(scores_BNLT: Tensor, source_BTD: Tensor) -> Tensor:
    """Every row of the text takes part, zeros too."""
    return scores_BNLT


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return rms_norm(centred, NORM_EPS)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def final_layer(weights: Weights, x_BLD: Tensor, lora_BD3: Tensor, embedding_BD: Tensor) -> Tensor:
    modulation = adaln(
        below(weights, "final_layer.adaLN_modulation."), embedding_BD, final_lora(lora_BD3)
    )
    shift, scale = final_chunks(modulation)
    x_BLD = final_modulated(layer_norm(x_BLD), shift, scale)
    return x_BLD @ weights["final_layer.linear.weight"].T


def final_lora(lora_BD3: Tensor) -> Tensor:
    return lora_BD3[:, : lora_BD3.shape[1] // 3 * 2]


def final_chunks(modulation_BD2: Tensor) -> tuple[Tensor, Tensor]:
    shift, scale = modulation_BD2[:, None].chunk(2, dim=-1)
    return shift, scale


def final_modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def below(weights: Weights, prefix: str) -> Weights:
    return {
        name.removeprefix(prefix): weight
        for name, weight in weights.items()
        if name.startswith(prefix)
    }
