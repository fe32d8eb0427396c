"""Video2World: what the network sees of given frames, and that they count nowhere else."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from diffusers import CosmosVideoToWorldPipeline
from diffusers.pipelines.cosmos import pipeline_cosmos_video2world as video2world
from PIL import Image
from test_against_diffusers import (
    FPS,
    FRAMES,
    HEIGHT,
    SEED,
    SHAPE,
    SIGMA_DATA,
    STEPS,
    WIDTH,
    noting,
    pipeline_of,
    random_pair,
    text,
)
from test_against_diffusers import _without_torchvision as _without_torchvision

from cosmos_hydra.config import ObjectiveConfig, Sampler
from cosmos_hydra.diffusion.edm import draw_noise, weighted_error
from cosmos_hydra.diffusion.generation import Request, generate_latent
from cosmos_hydra.diffusion.given import Given, give
from cosmos_hydra.models.transformer import Denoiser
from cosmos_hydra.seeds import torch_generator

SIGMA_B = torch.tensor([0.02, 1.0, 30.0])
COUNT_B = torch.tensor([0, 1, 2])
OBJECTIVE = ObjectiveConfig(given_frames=[0, 1, 2])


def drawn(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, 3, 2, 2, generator=torch.Generator().manual_seed(seed))


def example(given_sigma: float = 0.001) -> tuple[torch.Tensor, torch.Tensor, Given]:
    """Return clean and noisy latents of three samples, of which 0, 1 and 2 frames are given."""
    clean, noise = SIGMA_DATA * drawn(0), drawn(1)
    noisy = clean + SIGMA_B.view(-1, 1, 1, 1, 1) * noise
    given = give(clean, drawn(2), COUNT_B, torch.full((3,), given_sigma), SIGMA_DATA)
    return clean, noisy, given


def test_the_network_sees_given_frames_almost_clean_and_marked_whatever_the_noise() -> None:
    clean, noisy, given = example()
    seen = []

    def network(latent: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        seen.append(latent)
        return torch.ones_like(latent[:, :4])

    estimate = given.denoise(network, noisy.double(), SIGMA_B, SIGMA_DATA)
    (latent,) = seen
    assert (latent.dtype, latent.shape) == (torch.float32, (3, 5, 3, 2, 2))
    for sample, (sigma, count) in enumerate(zip(SIGMA_B.tolist(), COUNT_B.tolist(), strict=True)):
        assert torch.equal(latent[sample, 4, :count], torch.ones(count, 2, 2))
        assert torch.equal(latent[sample, 4, count:], torch.zeros(3 - count, 2, 2))
        # unit variance: that of a latent of deviation sigma_data without noise
        shown = latent[sample, :4, :count]
        torch.testing.assert_close(
            shown, clean[sample, :, :count] / SIGMA_DATA, atol=0.02, rtol=0.01
        )
        total = (sigma**2 + SIGMA_DATA**2) ** 0.5
        torch.testing.assert_close(
            latent[sample, :4, count:], noisy[sample, :, count:] / total, atol=1e-5, rtol=1e-5
        )
        assert torch.equal(estimate[sample, :, :count], clean[sample, :, :count].double())
        rest = SIGMA_DATA**2 / total**2 * noisy[sample, :, count:] + sigma * SIGMA_DATA / total
        torch.testing.assert_close(estimate[sample, :, count:], rest.double(), atol=1e-5, rtol=1e-5)


def test_noise_of_given_frames_is_their_own() -> None:
    clean, _, given = example(given_sigma=0.3)
    scale = (0.3**2 + SIGMA_DATA**2) ** -0.5
    torch.testing.assert_close(given.input_BCFHW, scale * (clean + 0.3 * drawn(2)))
    quiet = example(given_sigma=0.0)[2]
    torch.testing.assert_close(quiet.input_BCFHW, clean / SIGMA_DATA)


def test_given_frames_do_not_count_in_the_loss() -> None:
    clean, _, given = example()
    estimate, padding = drawn(3), torch.zeros(3, 1, 2, 2)
    padding[:, :, 1] = 1

    def losses(estimate: torch.Tensor) -> torch.Tensor:
        return weighted_error(estimate, clean, SIGMA_B, padding, SIGMA_DATA, given.mask_B1F11)

    disturbed = estimate.clone()
    disturbed[1, :, :1] = disturbed[2, :, :2] = 1e6
    assert torch.equal(losses(disturbed), losses(estimate))
    for sample, (sigma, count) in enumerate(zip(SIGMA_B.tolist(), COUNT_B.tolist(), strict=True)):
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        counted = ((estimate - clean)[sample, :, count:, :1] ** 2).mean().item()
        assert losses(estimate)[sample].item() == pytest.approx(weight * counted, rel=1e-5)


def test_what_is_given_is_drawn_beside_the_noise_and_changes_none_of_it() -> None:
    keys = {"seed": 3, "sample": "a", "copy": 0}
    shape = torch.Size((2, 3, 2, 2))
    draws = [draw_noise(shape, OBJECTIVE, step=step, **keys) for step in range(600)]
    counts = [draws_.given for draws_ in draws]
    for count in (0, 1, 2):
        assert 160 < counts.count(count) < 240
    ln_sigma = torch.stack([d.given_sigma for d in draws if d.given_sigma is not None]).log()
    assert len(ln_sigma) == 600
    assert ln_sigma.mean().item() == pytest.approx(-3, abs=0.3)
    assert ln_sigma.std().item() == pytest.approx(2, abs=0.2)
    plain = draw_noise(shape, ObjectiveConfig(), step=7, **keys)
    again = draw_noise(shape, OBJECTIVE, step=7, **keys)
    assert (plain.given, plain.given_sigma) == (None, None)
    assert torch.equal(plain.noise_CFHW, draws[7].noise_CFHW)
    assert (plain.sigma, plain.keeps_text) == (draws[7].sigma, draws[7].keeps_text)
    assert (again.given, again.given_sigma) == (draws[7].given, draws[7].given_sigma)


def run_ours(
    denoiser: Denoiser, given: torch.Tensor, sigma: float, guidance: float, sampler: Sampler
) -> torch.Tensor:
    request = Request(text(0), text(1), SHAPE, FPS, SEED, STEPS, guidance, sampler, given, sigma)
    return generate_latent(denoiser, request, SIGMA_DATA, torch.device("cpu"), nullcontext)


def given_latent(frames: int) -> torch.Tensor:
    return torch.randn(16, frames, *SHAPE[2:], generator=torch.Generator().manual_seed(8))


@pytest.mark.parametrize(
    ("guidance", "frames", "sigma"), [(7.0, 1, 0.001), (0.0, 2, 0.001), (7.0, 1, 2.0)]
)
def test_our_euler_equals_the_pipeline_of_diffusers_on_a_real_network(
    guidance: float, frames: int, sigma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser, other = random_pair(condition_mask=True)
    given_CLHW = given_latent(frames)
    whole = torch.cat([given_CLHW, torch.zeros(16, SHAPE[1] - frames, *SHAPE[2:])], dim=1)
    generator = torch_generator("generate", SEED)
    start, own_noise = (torch.randn(1, *SHAPE, generator=generator) for _ in range(2))
    # the pipeline draws the noise of given frames anew in every step; the original does not
    draws = []

    def drawn_again(*_: object, **__: object) -> torch.Tensor:
        draws.append(own_noise)
        return own_noise

    monkeypatch.setattr(video2world, "randn_tensor", drawn_again)
    encoded = SimpleNamespace(latents=whole[None])
    vae = SimpleNamespace(
        config=SimpleNamespace(latents_mean=None, latent_channels=16),
        dtype=torch.float32,
        encode=lambda video: encoded,
    )
    parts = pipeline_of(other)
    pipeline = CosmosVideoToWorldPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=other,
        vae=None,
        scheduler=parts.scheduler,
        safety_checker=parts.safety_checker,
    )
    pipeline.vae = vae
    pipeline.set_progress_bar_config(disable=True)
    seen = noting(other)
    pictures = [Image.new("RGB", (WIDTH, HEIGHT))] * (1 + 8 * (frames - 1))
    expected = pipeline(
        video=pictures,
        prompt_embeds=text(0)[None],
        negative_prompt_embeds=text(1)[None],
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        num_inference_steps=STEPS + 1,
        guidance_scale=guidance,
        augment_sigma=sigma,
        fps=FPS,
        latents=start,
        output_type="latent",
    ).frames[0]
    assert len(draws) == (STEPS + 1) * (2 if guidance else 1)
    ours = run_ours(denoiser, given_CLHW, sigma, guidance, Sampler.euler)
    assert all(call["condition_mask"][:, :, :frames].eq(1).all() for call in seen)
    error = (ours * SIGMA_DATA - expected).abs().max() / expected.abs().max()
    print(f"guidance {guidance:g}, {frames} frames given, sigma {sigma:g}: {error:.1e}")  # noqa: T201
    assert error < 1e-4


def test_res_2ab_ends_with_the_given_frames_as_they_are_and_others_for_others() -> None:
    denoiser, _ = random_pair(condition_mask=True)
    given = given_latent(2)
    one = run_ours(denoiser, given, 0.001, 7.0, Sampler.res_2ab)
    assert torch.equal(one[:, :2], given)
    other = run_ours(denoiser, -given, 0.001, 7.0, Sampler.res_2ab)
    assert not torch.allclose(one[:, 2:], other[:, 2:], atol=1e-3)
    nothing = run_ours(denoiser, given[:, :0], 0.001, 7.0, Sampler.res_2ab)
    assert nothing.shape == one.shape
    assert not torch.allclose(nothing[:, 2:], one[:, 2:], atol=1e-3)
