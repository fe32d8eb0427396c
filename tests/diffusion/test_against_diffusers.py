"""Where diffusers' pipelines agree with us, and each point where we go another way.

A new version of diffusers that changes one of these points fails here, so that docs/fidelity.md
and the code are looked at again.
Legend: B batch, C channels, F latent frames, H W latent height/width, T text tokens, D text dim.
"""

import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import CosmosTextToWorldPipeline, CosmosTransformer3DModel, EDMEulerScheduler
from diffusers.models.transformers import transformer_cosmos
from diffusers.pipelines.cosmos import pipeline_cosmos_text2world as text2world
from diffusers.pipelines.cosmos import pipeline_cosmos_video2world as video2world
from torch import nn

from cosmos_hydra.config import ModelConfig, Sampler
from cosmos_hydra.diffusion.generation import Request, generate_latent
from cosmos_hydra.diffusion.samplers import SIGMA_MAX, SIGMA_MIN, karras_sigmas
from cosmos_hydra.models.transformer import Denoiser, build_transformer
from cosmos_hydra.seeds import torch_generator

T, D = 6, 32
SHAPE = (16, 3, 4, 6)
FRAMES, HEIGHT, WIDTH, FPS = 17, 32, 48, 12
STEPS, SEED = 8, 3
SIGMA_DATA = 0.5
SIZES = {"num_layers": 2, "text_dim": D, "max_size": [4, 8, 8], "rope_scale": [2.0, 1.0, 1.0]}


def model_of(condition_mask: bool = False) -> ModelConfig:
    own = {"num_heads": 2, "head_dim": 24, "adaln_lora_dim": 8, "text_tokens": T}
    return ModelConfig(name="tiny", condition_mask=condition_mask, **own, **SIZES)  # type: ignore[arg-type]


def theirs(in_channels: int = 16) -> CosmosTransformer3DModel:
    """Return the class as the release configures it."""
    return CosmosTransformer3DModel(
        in_channels=in_channels,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=24,
        num_layers=2,
        text_embed_dim=D,
        adaln_lora_dim=8,
        max_size=(4, 8, 8),
        rope_scale=(2.0, 1.0, 1.0),
    ).eval()


def norms_of(transformer: nn.Module) -> Iterator[nn.Module]:
    for block in transformer.transformer_blocks:
        for attention in (block.attn1, block.attn2):
            yield from (attention.norm_q, attention.norm_k)


@pytest.fixture(autouse=True)
def _without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resize the mask, as the class does with torchvision, which is not installed."""

    def resize(mask: torch.Tensor, size: list[int], interpolation: Any) -> torch.Tensor:
        return nn.functional.interpolate(mask, size, mode="nearest")

    functional = SimpleNamespace(resize=resize)
    transforms = SimpleNamespace(
        functional=functional, InterpolationMode=SimpleNamespace(NEAREST=0)
    )
    monkeypatch.setattr(transformer_cosmos, "transforms", transforms, raising=False)


def random_pair(condition_mask: bool = False) -> tuple[Denoiser, CosmosTransformer3DModel]:
    """Return our network and diffusers' with the same weights and the epsilon of the original."""
    ours, other = build_transformer(model_of(condition_mask)), theirs(16 + condition_mask)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    other.load_state_dict(ours.state_dict(), strict=True)
    for norm in norms_of(other):
        norm.eps = 1e-6
    return Denoiser(ours).eval(), other


class Unasked(nn.Module):
    """In place of the checker of words and pictures; here are neither."""

    device = torch.device("cpu")


def pipeline_of(transformer: nn.Module) -> CosmosTextToWorldPipeline:
    scheduler = EDMEulerScheduler(
        sigma_min=SIGMA_MIN,
        sigma_max=SIGMA_MAX,
        sigma_data=SIGMA_DATA,
        sigma_schedule="karras",
        prediction_type="epsilon",
        final_sigmas_type="sigma_min",
    )
    pipeline = CosmosTextToWorldPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=None,
        scheduler=scheduler,
        safety_checker=Unasked(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def text(seed: int) -> torch.Tensor:
    return torch.randn(T, D, generator=torch.Generator().manual_seed(seed))


def noise_1CFHW() -> torch.Tensor:
    return torch.randn(1, *SHAPE, generator=torch_generator("generate", SEED))


def run_pipeline(pipeline: CosmosTextToWorldPipeline, guidance: float) -> torch.Tensor:
    return pipeline(
        prompt_embeds=text(0)[None].to(pipeline.transformer.dtype),
        negative_prompt_embeds=text(1)[None].to(pipeline.transformer.dtype),
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        num_inference_steps=STEPS + 1,
        guidance_scale=guidance,
        fps=FPS,
        latents=noise_1CFHW(),
        output_type="latent",
    ).frames


def run_ours(denoiser: Denoiser, guidance: float, sampler: Sampler = Sampler.euler) -> torch.Tensor:
    request = Request(text(0), text(1), SHAPE, FPS, SEED, STEPS, guidance, sampler)
    return generate_latent(denoiser, request, SIGMA_DATA, torch.device("cpu"), nullcontext)


def noting(module: nn.Module) -> list[dict[str, Any]]:
    """Return a list that grows with the inputs of each call by name."""
    seen: list[dict[str, Any]] = []
    names = list(inspect.signature(module.forward).parameters)
    module.register_forward_pre_hook(
        lambda _, inputs, named: seen.append({**dict(zip(names, inputs, strict=False)), **named}),
        with_kwargs=True,
    )
    return seen


@pytest.mark.parametrize("guidance", [7.0, 0.0])
def test_our_euler_equals_the_pipeline_step_by_step_on_a_real_network(guidance: float) -> None:
    denoiser, other = random_pair()
    ours, pipeline = noting(denoiser), pipeline_of(other)
    seen = noting(other)
    expected_1CFHW = run_pipeline(pipeline, guidance)
    latent_CFHW = run_ours(denoiser, guidance)
    seen = seen[:: 2 if guidance else 1]  # the branch with the text comes first
    sigmas = karras_sigmas(STEPS)
    assert torch.equal(pipeline.scheduler.sigmas[:-1].double(), sigmas.float().double())
    assert len(ours) == STEPS
    for index, call in enumerate(ours):
        torch.testing.assert_close(
            call["latent_BCFHW"][:1], seen[index]["hidden_states"], rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(call["c_noise_B"][:1], seen[index]["timestep"])
        assert call["fps"] == seen[index]["fps"]
    error = (latent_CFHW * SIGMA_DATA - expected_1CFHW[0]).abs().max() / expected_1CFHW.abs().max()
    print(f"guidance {guidance:g}: {error:.1e}")  # noqa: T201
    assert error < 1e-4


def test_the_last_call_of_the_pipeline_moves_nothing() -> None:
    _, other = random_pair()
    pipeline = pipeline_of(other)
    pipeline.scheduler.set_timesteps(STEPS + 1)
    assert pipeline.scheduler.sigmas[-1] == pipeline.scheduler.sigmas[-2]
    seen = noting(other)
    end = run_pipeline(pipeline, 0.0)
    assert len(seen) == STEPS + 1
    c_in = (pipeline.scheduler.sigmas[-1] ** 2 + SIGMA_DATA**2).rsqrt()
    torch.testing.assert_close(seen[-1]["hidden_states"], end * c_in)


def test_res_2ab_spends_that_call_on_a_clean_estimate() -> None:
    denoiser, _ = random_pair()
    seen = noting(denoiser)
    run_ours(denoiser, 0.0, Sampler.res_2ab)
    assert len(seen) == STEPS + 1
    assert seen[-1]["c_noise_B"].item() == pytest.approx(0.25 * torch.tensor(SIGMA_MIN).log())


def test_guidance_up_to_one_is_none_in_the_pipeline_and_some_here() -> None:
    denoiser, other = random_pair()
    pipeline, seen, ours = pipeline_of(other), noting(other), noting(denoiser)
    without = run_pipeline(pipeline, 0.0)
    assert torch.equal(run_pipeline(pipeline, 1.0), without)
    assert len(seen) == 2 * (STEPS + 1)
    run_ours(denoiser, 1.0)
    assert all(len(call["latent_BCFHW"]) == 2 for call in ours)


def test_defaults_of_the_pipelines_that_are_not_ours() -> None:
    for pipeline in (CosmosTextToWorldPipeline, video2world.CosmosVideoToWorldPipeline):
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(pipeline.__call__).parameters.items()
        }
        assert (defaults["fps"], defaults["num_inference_steps"]) == (30, 36)
        assert (defaults["guidance_scale"], defaults["negative_prompt"]) == (7.0, None)
    assert len(text2world.DEFAULT_NEGATIVE_PROMPT.split()) > 50


def test_the_pipeline_rounds_the_noise_level_with_the_network_and_we_do_not() -> None:
    denoiser, other = random_pair()
    seen, ours = noting(other), noting(denoiser)
    run_pipeline(pipeline_of(other.to(torch.bfloat16)), 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        run_ours(denoiser, 0.0)
    exact = 0.25 * karras_sigmas(STEPS)[:-1].log()
    theirs_, ours_ = (
        torch.cat([call[name] for call in calls])[:STEPS]
        for calls, name in ((seen, "timestep"), (ours, "c_noise_B"))
    )
    assert (theirs_.dtype, ours_.dtype) == (torch.bfloat16, torch.float32)
    assert (theirs_.double() - exact).abs().max() > 1e-3
    assert (ours_.double() - exact).abs().max() < 1e-6


def test_the_epsilons_of_diffusers() -> None:
    other = theirs()
    assert {norm.eps for norm in norms_of(other)} == {1e-5}
    assert {norm.eps for norm in norms_of(build_transformer(model_of()))} == {1e-6}
    names = ("norm1", "norm2", "norm3")
    around = [getattr(block, name).norm for block in other.transformer_blocks for name in names]
    assert {norm.eps for norm in [*around, other.norm_out.norm, other.time_embed.norm]} == {1e-6}


def inputs(batch: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(4)
    return {
        "latent": torch.randn(batch, *SHAPE, generator=generator),
        "c_noise": torch.linspace(-0.3, 0.3, batch),
        "text": torch.randn(batch, T, D, generator=generator),
        "padding": torch.zeros(batch, 1, *SHAPE[2:]),
    }


def call_theirs(other: CosmosTransformer3DModel, given: dict[str, Any], **more: Any) -> Any:
    named = {"fps": FPS, "padding_mask": given["padding"], **more}
    with torch.no_grad():
        return other(given["latent"], given["c_noise"], given["text"], **named).sample


def test_a_mask_for_each_sample_breaks_diffusers_and_not_us() -> None:
    denoiser, other = random_pair()
    given = inputs(2)
    given["padding"][1, ..., -1] = 1
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        call_theirs(other, given)
    with torch.no_grad():
        both = denoiser(given["latent"], given["c_noise"], given["text"], given["padding"], FPS)
    for index in (0, 1):
        alone = {name: value[index : index + 1] for name, value in given.items()}
        torch.testing.assert_close(both[index : index + 1], call_theirs(other, alone))


def test_diffusers_takes_one_rate_for_the_batch() -> None:
    _, other = random_pair()
    given = {**inputs(2), "padding": torch.zeros(1, 1, *SHAPE[2:])}
    with pytest.raises(RuntimeError, match="must match the size"):
        call_theirs(other, given, fps=torch.tensor([12.0, 24.0]))


def test_the_condition_mask_lies_between_latent_and_padding_mask() -> None:
    denoiser, other = random_pair(condition_mask=True)
    given = inputs(1)
    given["padding"][..., -1] = 1
    condition_B1FHW = torch.zeros(1, 1, *SHAPE[1:])
    condition_B1FHW[:, :, 0] = 1
    expected = call_theirs(other, given, condition_mask=condition_B1FHW)
    padding_B1FHW = given["padding"][:, :, None].expand_as(condition_B1FHW)
    with torch.no_grad():
        ours = denoiser.transformer(
            torch.cat([given["latent"], condition_B1FHW, padding_B1FHW], dim=1),
            given["c_noise"],
            given["text"],
            fps=FPS,
        ).sample
    torch.testing.assert_close(ours, expected)
