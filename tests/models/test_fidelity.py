"""Our transformer against the plain reference, and against references with one mistake each.

Legend: B batch, C channels, F latent frames, H W latent height/width, T text tokens, D text dim.
"""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from reference import dit
from reference.dit import Sizes, Weights

from cosmos_hydra.config import Attention, ModelConfig
from cosmos_hydra.engines.torch.attention import set_attention
from cosmos_hydra.engines.torch.kernels import kernel_of
from cosmos_hydra.models.transformer import Denoiser, build_transformer

TEXT_TOKENS, TEXT_DIM = 5, 24
TOLERANCE = 2e-6  # largest error over largest value, float32
# what the reference is told is the original; our network keeps diffusers' names
OUTSIDE = {
    "x_embedder.proj.1.": "patch_embed.proj.",
    "t_embedder.1.": "time_embed.t_embedder.",
    "affline_norm.": "time_embed.norm.",
    "extra_pos_embedder.": "learnable_pos_embed.",
    "final_layer.adaLN_modulation.1.": "norm_out.linear_1.",
    "final_layer.adaLN_modulation.2.": "norm_out.linear_2.",
    "final_layer.linear.": "proj_out.",
}
IN_A_BLOCK = {
    **{
        f"{number}.block.attn.{theirs}": f"attn{number + 1}.{ours}"
        for number in (0, 1)
        for theirs, ours in {
            "to_q.0.": "to_q.",
            "to_k.0.": "to_k.",
            "to_v.0.": "to_v.",
            "to_out.0.": "to_out.0.",
            "to_q.1.": "norm_q.",
            "to_k.1.": "norm_k.",
        }.items()
    },
    "2.block.layer1.": "ff.net.0.proj.",
    "2.block.layer2.": "ff.net.2.",
    **{
        f"{number}.adaLN_modulation.{matrix}.": f"norm{number + 1}.linear_{matrix}."
        for number in (0, 1, 2)
        for matrix in (1, 2)
    },
}


@dataclass(frozen=True)
class Case:
    """A small network and an input for it."""

    sizes: Sizes
    adaln_dim: int = 8
    grid: tuple[int, int, int] = (3, 4, 6)  # latent frames, height, width
    batch: int = 2
    fps: float = 24.0
    is_video2world: bool = False
    query_scale: float = 1.0


HEADS_OF_128 = Sizes(2, 2, 128, (2.0, 2.0, 2.0))
CASES = {
    "24 channels a head": Case(Sizes(1, 2, 24, (1.0, 1.0, 1.0)), fps=8.0),
    "one frame": Case(Sizes(2, 3, 32), grid=(1, 6, 4), fps=30.0, batch=1),
    "three blocks": Case(Sizes(3, 4, 48, (2.0, 2.0, 2.0)), adaln_dim=16, fps=30.0),
    "7b's heads": Case(Sizes(2, 2, 128), grid=(5, 4, 4)),
    "14b's heads": Case(HEADS_OF_128, fps=8.0, grid=(2, 8, 6)),
    "many frames": Case(Sizes(1, 2, 64), grid=(16, 2, 4), fps=10.0),
    "video2world": Case(Sizes(2, 2, 128), is_video2world=True),
    "video2world, three blocks": Case(
        Sizes(3, 3, 40, (2.0, 2.0, 2.0)), is_video2world=True, fps=30.0
    ),
    "small queries": Case(HEADS_OF_128, query_scale=1e-3, fps=30.0, is_video2world=True),
}
SHARP = CASES["small queries"]


def model_of(case: Case) -> ModelConfig:
    return ModelConfig(
        name="small",
        num_layers=case.sizes.num_layers,
        num_heads=case.sizes.num_heads,
        head_dim=case.sizes.head_dim,
        adaln_lora_dim=case.adaln_dim,
        text_tokens=TEXT_TOKENS,
        text_dim=TEXT_DIM,
        max_size=[16, 12, 12],
        rope_scale=list(case.sizes.rope_scale),
        condition_mask=case.is_video2world,
    )


def ours_of(name: str) -> str:
    """Return our name of an original weight."""
    start, table = "", OUTSIDE
    if name.startswith("blocks.block"):
        number, _, name = name.removeprefix("blocks.block").partition(".blocks.")
        start, table = f"transformer_blocks.{number}.", IN_A_BLOCK
    theirs = next(theirs for theirs in table if name.startswith(theirs))
    return start + table[theirs] + name.removeprefix(theirs)


def random_weights(case: Case) -> Weights:
    """Return weights by original name, none of them zero or one, float64."""
    width, rank = case.sizes.num_heads * case.sizes.head_dim, case.adaln_dim
    head = case.sizes.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.1.weight": (width, 4 * (18 if case.is_video2world else 17)),
        "t_embedder.1.linear_1.weight": (width, width),
        "t_embedder.1.linear_2.weight": (3 * width, width),
        "affline_norm.weight": (width,),
        "extra_pos_embedder.pos_emb_t": (16, width),
        "extra_pos_embedder.pos_emb_h": (6, width),
        "extra_pos_embedder.pos_emb_w": (6, width),
        "final_layer.adaLN_modulation.1.weight": (rank, width),
        "final_layer.adaLN_modulation.2.weight": (2 * width, rank),
        "final_layer.linear.weight": (64, width),
    }
    for index in range(case.sizes.num_layers):
        for part in (0, 1):
            source = TEXT_DIM if part else width
            start = f"blocks.block{index}.blocks.{part}.block.attn"
            shapes |= {f"{start}.to_{p}.0.weight": (width, source) for p in "kv"}
            shapes |= {f"{start}.{p}.0.weight": (width, width) for p in ("to_q", "to_out")}
            shapes |= {f"{start}.to_{p}.1.weight": (head,) for p in "qk"}
        start = f"blocks.block{index}.blocks"
        shapes[f"{start}.2.block.layer1.weight"] = (4 * width, width)
        shapes[f"{start}.2.block.layer2.weight"] = (width, 4 * width)
        for part in (0, 1, 2):
            shapes[f"{start}.{part}.adaLN_modulation.1.weight"] = (rank, width)
            shapes[f"{start}.{part}.adaLN_modulation.2.weight"] = (3 * width, rank)
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        weights[name] = 1 + 0.3 * noise if len(shape) == 1 else noise / math.sqrt(shape[-1])
        if name.endswith(("to_q.0.weight", "to_k.0.weight")):
            weights[name] *= case.query_scale
    return weights


def random_inputs(case: Case) -> dict[str, Any]:
    """Return what the reference is given, float64; samples differ in all, the mask too."""
    generator = torch.Generator().manual_seed(1)
    _, height, width = case.grid

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(case.batch, *shape, generator=generator, dtype=torch.float64)

    text_BTD = normal(TEXT_TOKENS, TEXT_DIM)
    text_BTD[0, -2:] = 0  # rows past the caption's end
    padding_B1HW = torch.zeros(case.batch, 1, height, width, dtype=torch.float64)
    condition_B1FHW = torch.zeros(case.batch, 1, *case.grid, dtype=torch.float64)
    for index in range(case.batch):
        padding_B1HW[index, :, height - 1 - index :] = 1
        condition_B1FHW[index, :, : 1 + index] = 1
    return {
        "latent_BCFHW": normal(16, *case.grid),
        "c_noise_B": 0.3 * normal(),
        "text_BTD": text_BTD,
        "padding_B1HW": padding_B1HW,
        "fps": case.fps,
        "condition_B1FHW": condition_B1FHW if case.is_video2world else None,
    }


def in_dtype(values: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        name: value.to(dtype) if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }


def expected(case: Case, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    weights, inputs = in_dtype(random_weights(case), dtype), in_dtype(random_inputs(case), dtype)
    return dit.forward(weights, case.sizes, **inputs)


@torch.no_grad()
def ours(case: Case, dtype: torch.dtype) -> torch.Tensor:
    transformer = build_transformer(model_of(case)).eval()
    for name, part in transformer.named_children():
        if name != "learnable_pos_embed":  # diffusers normalises these in float32 alone
            part.to(dtype)
    if dtype is torch.float32:  # as in a run; else diffusers' own attention
        set_attention(transformer, kernel_of(Attention.flash))
    weights = {ours_of(name): weight for name, weight in random_weights(case).items()}
    transformer.load_state_dict(weights, strict=True)
    inputs = in_dtype(random_inputs(case), dtype)
    condition_B1FHW = inputs.pop("condition_B1FHW")
    if condition_B1FHW is None:
        return Denoiser(transformer)(**inputs)
    padding_B1FHW = inputs["padding_B1HW"][:, :, None].expand_as(condition_B1FHW)
    return transformer(
        hidden_states=torch.cat([inputs["latent_BCFHW"], condition_B1FHW, padding_B1FHW], dim=1),
        timestep=inputs["c_noise_B"],
        encoder_hidden_states=inputs["text_BTD"],
        fps=inputs["fps"],
        return_dict=False,
    )[0]


def error(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest error over the largest value."""
    assert one.shape == other.shape
    return ((one - other).abs().max() / other.abs().max()).item()


@pytest.mark.parametrize("name", CASES)
def test_our_network_equals_the_reference(name: str) -> None:
    case = CASES[name]
    wanted = expected(case)
    single, double = (error(ours(case, d), wanted) for d in (torch.float32, torch.float64))
    both_single = error(ours(case, torch.float32), expected(case, torch.float32))
    print(f"{name}: float32 {single:.1e} ({both_single:.1e}), float64 {double:.1e}")  # noqa: T201
    assert max(single, both_single) < TOLERANCE
    assert double < TOLERANCE / 4  # positions are float32


def test_a_padding_mask_of_pixels_is_the_one_of_latent_cells_to_the_reference() -> None:
    case = CASES["one frame"]
    weights, inputs = random_weights(case), random_inputs(case)
    pixels = inputs["padding_B1HW"].repeat_interleave(8, 2).repeat_interleave(8, 3)
    large = dit.forward(weights, case.sizes, **{**inputs, "padding_B1HW": pixels})
    assert torch.equal(large, expected(case))


def swapped(patch_BCpq: torch.Tensor) -> torch.Tensor:
    return patch_BCpq.flatten(2).transpose(1, 2).flatten(1)


def masked_where_zero(scores_BNLT: torch.Tensor, source_BTD: torch.Tensor) -> torch.Tensor:
    is_empty_BT = (source_BTD == 0).all(-1)
    return scores_BNLT.masked_fill(is_empty_BT[:, None, None], -math.inf)


sigmoid, gelu_of_torch = torch.sigmoid, torch.nn.functional.gelu
# one mistake each: the statement of the reference that it replaces, and by what
MISTAKES: dict[str, tuple[str, Any]] = {
    "rope axes in another order": ("joined", lambda t, h, w: h + w + t),
    "rope scale ignored": ("ntk", lambda scale, dim: 1.0),
    "rope scale without its exponent": ("ntk", lambda scale, dim: scale),
    "rope split evenly": ("axis_dims", lambda head_dim: (42, 42, 44)),
    "fps ignored": ("frame_time", lambda frame, fps: float(frame)),
    "another base fps": ("TIME_BASE_FPS", 25.0),
    "rope pairs interleaved": (
        "pairs",
        lambda head_dim: [(2 * i, 2 * i + 1) for i in range(head_dim // 2)],
    ),
    "no rope": ("rotate", lambda x, angles: x),
    "q/k epsilon of diffusers": ("QK_EPS", 1e-5),
    "values normalised": ("values", lambda v: dit.rms_norm(v, 1e-6)),
    "scores not scaled": ("score_scale", lambda head_dim: 1.0),
    "empty text masked": ("masked", masked_where_zero),
    "positions not normalised": ("unit", lambda vector: vector),
    "positions added once": ("with_positions", lambda x, p, block: x if block else x + p),
    "scale before shift": ("chunks", lambda m: (lambda a, b, c: (b, a, c))(*CHUNKS(m))),
    "gate first": ("chunks", lambda m: (lambda a, b, c: (b, c, a))(*CHUNKS(m))),
    "gate through tanh": ("chunks", lambda m: (lambda a, b, c: (a, b, c.tanh()))(*CHUNKS(m))),
    "adaln_lora not added": ("with_lora", lambda modulation, lora: modulation),
    "modulations of the hidden layer": ("embedding_source", lambda waves, hidden: hidden),
    "sines first": ("sinusoid", lambda c, width: SINUSOID(c, width).roll(width // 2, 1)),
    "steps of 1000": ("sinusoid", lambda c, width: SINUSOID(1000 * c, width)),
    "channel fastest in a patch": ("patch_features", swapped),
    "channel slowest in the output": ("cell", lambda x: x.unflatten(1, (-1, 2, 2))),
    "padding channel first": ("channels", lambda x, condition, p: [p, x, condition]),
    "condition mask last": ("channels", lambda x, condition, p: [x, p, condition]),
    "padding mask ignored": ("nearest", lambda mask, height, width: torch.zeros_like(mask)),
    "cross-attention first": ("order", lambda: (1, 0, 2)),
    "final layer with a gate": (
        "final_modulated",
        lambda x, shift, scale: scale * (x * (1 + scale) + shift),
    ),
    "final scale before shift": ("final_chunks", lambda m: FINAL_CHUNKS(m)[::-1]),
    "last part of adaln_lora in the final layer": (
        "final_lora",
        lambda lora: lora[:, lora.shape[1] // 3 :],
    ),
    "tanh gelu": ("gelu", lambda x: gelu_of_torch(x, approximate="tanh")),
    "quick gelu": ("gelu", lambda x: x * sigmoid(1.702 * x)),
}
CHUNKS, FINAL_CHUNKS, SINUSOID = dit.chunks, dit.final_chunks, dit.sinusoid


@pytest.fixture(scope="module")
def sharp() -> torch.Tensor:
    """Return what our network makes of the case that shows every mistake."""
    return ours(SHARP, torch.float32)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_reference_with_one_mistake_differs(
    mistake: str, sharp: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dit, *MISTAKES[mistake])
    found = error(expected(SHARP), sharp)
    print(f"{mistake}: {found:.1e}")  # noqa: T201
    assert found > 10 * TOLERANCE
