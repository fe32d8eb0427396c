"""Before the first step from given weights: what training computes must be what sampling shows.

Both paths denoise one noisy clip of the run. First what each gives the network is compared, then
what each makes of its answer. No generator of random numbers is touched and no weight changes.
"""

import logging
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch.func import functional_call

from cosmos_hydra.config import Precision
from cosmos_hydra.data.loader import Batch, Loader
from cosmos_hydra.diffusion.edm import precondition
from cosmos_hydra.diffusion.generation import RawPrediction, conditioned, to_latent
from cosmos_hydra.engines.torch.precision import effective_precision
from cosmos_hydra.engines.torch.shard import eager
from cosmos_hydra.engines.torch.step import Stepper, given_of
from cosmos_hydra.errors import StageError
from cosmos_hydra.models.transformer import Denoiser, evaluating

INPUTS = ("noisy latent", "noise level", "text", "padding mask", "fps")
# of what the network is given, over its largest value or 1: the sampler's state is float64
SAME = 1e-5
# of the estimates, over the network's largest part in them, or 1 in its own unit. fp32: the same
# sums on inputs that differ in the last bit. bf16: generation rounds the weights of norms too, and
# a rounding is 0.4 % in every block
TOLERANCE = {Precision.fp32: 1e-4, Precision.bf16: 5e-2}
logger = logging.getLogger(__name__)


@torch.no_grad()
def check_paths(stepper: Stepper, loader: Loader, given: str) -> None:
    """Check a clip of each rank; called by every rank, which denoises a batch and a clip.

    `given` names the weights in messages. Raises: StageError on every rank when the paths differ
    on any; with engine.force a warning takes its place.
    """
    batch = _first_batch(loader).to(stepper.ranks.device)
    clip = _first_clip(batch)
    sigma_data = stepper.config.model.objective.sigma_data
    given_in_training: list[tuple[Any, ...]] = []
    given_in_sampling: list[tuple[Any, ...]] = []
    hook = stepper.denoiser.register_forward_pre_hook(_noting(given_in_training))
    try:
        trained_CFHW = stepper.estimate(batch)[1][0] / sigma_data
    finally:
        hook.remove()

    def note(*inputs: Any) -> torch.Tensor:
        given_in_sampling.append(inputs)
        return torch.zeros_like(inputs[0][:, : clip.latent_BCFHW.shape[1]])

    without_CFHW = _sample(note, clip, stepper)  # what both have without a prediction
    for name, one, other in zip(INPUTS, given_in_training[0], given_in_sampling[0], strict=True):
        difference = next(filter(None, stepper.ranks.gather(_difference(_first(one), other))), None)
        if difference:
            _refuse(
                stepper,
                f"{given}: training and sampling give the network another {name} ({difference}); "
                f"samples would not show what is trained, so report this fault of the program",
            )
            return
    with evaluating(stepper.denoiser), eager(stepper.config.parallel):
        sampled_CFHW = _sample(_as_generated(stepper), clip, stepper)
    c_out = precondition(clip.sigma_B, sigma_data).c_out.max() / sigma_data
    largest = (trained_CFHW - without_CFHW).abs().max().maximum(c_out)
    errors = stepper.ranks.gather(((sampled_CFHW - trained_CFHW).abs().max() / largest).item())
    error = max(errors, key=lambda value: (value != value, value))  # not a number is the worst
    precision = _precision(stepper)
    tolerance = TOLERANCE[precision]
    measured = (
        f"by {error:.1e} of the largest prediction (tolerance {tolerance:.0e} in {precision})"
    )
    if not error <= tolerance:
        _refuse(
            stepper,
            f"{given}: the estimates of training and sampling differ {measured}; "
            f"try parallel.compile=false, parallel.attention=math or parallel.precision=fp32",
        )
    logger.info(f"training and sampling differ {measured} on a clip at sigma {clip.sigma_B[0]:.2g}")


def _first_batch(loader: Loader) -> Batch:
    """Return what this rank trains on first, with its texts whatever the dropout.

    A whole batch: compiled blocks see no other shape than in training.
    """
    loader = copy(loader)
    loader.objective = replace(loader.objective, text_dropout=0.0)
    return loader.load(0)[0]


def _first_clip(batch: Batch) -> Batch:
    firsts = {name: _first(value) for name, value in vars(batch).items()}
    return replace(batch, **firsts)


def _first(value: Any) -> Any:
    return value[:1] if isinstance(value, torch.Tensor) else value


def _sample(network: RawPrediction, clip: Batch, stepper: Stepper) -> torch.Tensor:
    """Return the latent that a sampler would end with at this clip's noise, [C, F, H, W]."""
    sigma, sigma_data = float(clip.sigma_B), stepper.config.model.objective.sigma_data
    clean_1CFHW = sigma_data * clip.latent_BCFHW.double()
    noisy_1CFHW = clean_1CFHW + sigma * clip.noise_BCFHW.double()
    denoise_at = conditioned(
        network,
        clip.text_BTD,
        clip.padding_B1HW,
        clip.fps,
        0.0,
        sigma_data,
        stepper.autocast,
        given_of(clip, clean_1CFHW, sigma_data),
    )
    return to_latent(denoise_at(noisy_1CFHW, sigma), sigma_data)


def _as_generated(stepper: Stepper) -> RawPrediction:
    """Return the network with its weights as generation holds them."""
    denoiser: Denoiser = stepper.denoiser
    if _precision(stepper) is Precision.fp32 or stepper.ranks.mesh is not None:
        return denoiser  # FSDP has rounded them for training too
    # autocast rounds those of linear layers
    rounded = {
        name: parameter.bfloat16()
        for name, parameter in denoiser.named_parameters()
        if parameter.dim() == 1
    }
    return lambda *inputs: functional_call(denoiser, rounded, inputs)


def _precision(stepper: Stepper) -> Precision:
    return effective_precision(stepper.config.parallel.precision, stepper.ranks.device)


def _noting(seen: list[tuple[Any, ...]]) -> Callable[..., None]:
    return lambda module, inputs: seen.append(inputs)


def _difference(one: Any, other: Any) -> str | None:
    """Return how two inputs differ, or None."""
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        return None if one == other else f"{one} and {other}"
    if one.shape != other.shape:
        return f"{list(one.shape)} and {list(other.shape)}"
    error = ((one - other).abs().max() / one.abs().max().clamp_min(1)).item()
    return None if error <= SAME else f"{error:.1e} of the largest value, tolerance {SAME:.0e}"


def _refuse(stepper: Stepper, problem: str) -> None:
    if stepper.config.engine.force:
        logger.warning(problem)
        return
    error = StageError(f"{problem}; engine.force=true trains anyway")
    error.is_everywhere = True
    raise error
