"""Make the videos of a plan: encode prompts, free the encoder, sample, decode, write.

Each video is an mp4 and, written after it, a JSON with everything that decides its content and
the command that makes it again. A video whose JSON is there is not made twice.
"""

import gc
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cosmos_hydra
from cosmos_hydra import files
from cosmos_hydra.config import Config, Precision
from cosmos_hydra.data.clips import latent_shape
from cosmos_hydra.data.video import decode, probe, to_pixels, write_mp4
from cosmos_hydra.diffusion.generation import Request, generate_latent
from cosmos_hydra.engines.torch.attention import set_attention
from cosmos_hydra.engines.torch.compiling import compiles_generation
from cosmos_hydra.engines.torch.kernels import effective_attention, kernel_of
from cosmos_hydra.engines.torch.precision import autocast_for, effective_precision
from cosmos_hydra.engines.torch.shard import compile_blocks
from cosmos_hydra.engines.torch.team import Team
from cosmos_hydra.errors import StageError
from cosmos_hydra.logs import progress
from cosmos_hydra.models.text import TextEncoder, load_text_encoder
from cosmos_hydra.models.tokenizer import Tokenizer, load_tokenizer
from cosmos_hydra.models.transformer import Denoiser, build_transformer
from cosmos_hydra.sampling.inputs import Input, encode_input
from cosmos_hydra.sampling.memorisation import TrainingClips
from cosmos_hydra.sampling.requests import Video
from cosmos_hydra.tracking.pictures import contact_sheet, save_picture
from cosmos_hydra.weights.compare import Difference, compare_all, comparison
from cosmos_hydra.weights.load import load_weights
from cosmos_hydra.weights.locate import Located

logger = logging.getLogger(__name__)


def common_facts(config: Config, weights: Located, device: torch.device) -> dict[str, Any]:
    """Return what all videos of a command share: weights, encoders, device, versions.

    Raises: StageError when tokenizer or text encoder are not those of the training samples.
    """
    manifest = weights.checkpoint.manifest if weights.checkpoint else {}
    precision = effective_precision(config.parallel.precision, device)
    facts: dict[str, Any] = {
        "weights_sha256": weights.digest,
        "device": str(device),
        "precision": precision.name,
        "compiled": compiles_generation(config, device),
        # the order of a CPU's sums, and so the last bits, follow the number of threads
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "torch": torch.__version__,
        "cosmos_hydra": cosmos_hydra.__version__,
    }
    parts: dict[str, Tokenizer | TextEncoder] = {
        "tokenizer": load_tokenizer(config.model, weights.tokenizer, device),
        "text_encoder": load_text_encoder(config.model, device),
    }
    for name, part in parts.items():
        facts[name] = part.identity
        trained_with = manifest.get(name)
        if trained_with and trained_with != part.identity:
            raise StageError(
                f"model.{name}.path={getattr(config.model, name).path} is not the {name} of the "
                f"training samples; set it to the one they were made with"
            )
    return facts


def make_videos(
    config: Config,
    weights: Located,
    videos: list[Video],
    out: Path,
    device: torch.device,
    team: Team,
    given: Input | None = None,
) -> list[Path]:
    """Make what is missing and return the paths of all videos; draw a contact sheet of them.

    A Video2World model goes on from what is `given`, or makes all of a clip where nothing is.
    Every rank of the team calls this and makes its share.
    """
    missing = team.decide(lambda: _missing(videos, out))
    if missing:
        texts = team.decide(lambda: _encode(config, missing, device))
        if own := team.share(missing):
            _sample(config, weights, own, texts, out, device, given)
        team.wait()
    paths = [out / f"{video.stem}.mp4" for video in videos]
    if team.is_first:
        rows = [
            (f"{video.prompt} (seed {video.seed})", _read(path))
            for video, path in zip(videos, paths, strict=True)
        ]
        save_picture(contact_sheet(rows), out / "contact_sheet.png")
    return paths


def _missing(videos: list[Video], out: Path) -> list[Video]:
    missing = [video for video in videos if not (out / f"{video.stem}.json").is_file()]
    if len(missing) < len(videos):
        logger.info(f"{len(videos) - len(missing)} of {len(videos)} videos are there already")
    return missing


def _encode(config: Config, videos: list[Video], device: torch.device) -> dict[str, torch.Tensor]:
    prompts = dict.fromkeys(video.prompt for video in videos)
    if config.generate.negative_prompt:
        prompts[config.generate.negative_prompt] = None
    encoder = load_text_encoder(config.model, device)
    texts = {prompt: encoder.encode(prompt).embedding_TD for prompt in prompts}
    del encoder
    gc.collect()
    return texts


def _sample(
    config: Config,
    weights: Located,
    videos: list[Video],
    texts: dict[str, torch.Tensor],
    out: Path,
    device: torch.device,
    given: Input | None,
) -> None:
    precision = config.parallel.precision
    autocast = autocast_for(precision, device)
    denoiser = _load_denoiser(config, weights, device, effective_precision(precision, device))
    difference = _compared(config, weights, denoiser)
    trained = weights.checkpoint
    tokenizer = load_tokenizer(config.model, weights.tokenizer, device)
    training_clips = TrainingClips(trained, tokenizer, device) if trained else None
    shape = latent_shape(config.data, config.model.latent_channels)
    given_CLHW = None
    if config.model.condition_mask:
        C, _, H, W = shape
        given_CLHW = encode_input(given, config, tokenizer) if given else torch.zeros(C, 0, H, W)
    negative = config.generate.negative_prompt
    with progress("generate", len(videos) * config.generate.steps, "steps") as bar:
        for video in videos:
            request = Request(
                text_TD=texts[video.prompt],
                negative_TD=texts[negative] if negative else None,
                shape_CFHW=shape,
                fps=video.facts["fps"],
                seed=video.seed,
                steps=config.generate.steps,
                guidance=config.generate.guidance,
                sampler=config.generate.sampler,
                given_CLHW=given_CLHW,
                given_sigma=config.model.objective.given_sigma,
            )
            sigma_data = config.model.objective.sigma_data
            latent_CFHW = generate_latent(
                denoiser, request, sigma_data, device, autocast, on_step=bar.advance
            )
            frames_FHWC = to_pixels(tokenizer.decode(latent_CFHW[None])[0])
            mp4 = out / f"{video.stem}.mp4"
            write_mp4(mp4, frames_FHWC, request.fps)
            if training_clips:
                training_clips.write_nearest(mp4, latent_CFHW)
            compared = asdict(difference) if difference else None
            sidecar = {**video.facts, "difference": compared, "command": video.command}
            files.write_json(out / f"{video.stem}.json", sidecar)


def _load_denoiser(
    config: Config, weights: Located, device: torch.device, precision: Precision
) -> Denoiser:
    # to draw first values for billions of weights takes a minute
    with torch.device("meta"):
        transformer = build_transformer(config.model)
    transformer.to_empty(device="cpu")
    attention = effective_attention(config, device, is_alone=True)
    set_attention(transformer, kernel_of(attention))
    load_weights(transformer, weights, elsewhere=config.model.weights.path)
    if compiles_generation(config, device):
        compile_blocks(transformer)
    if precision is Precision.bf16:
        for name, part in transformer.named_children():
            # position tables stay exact: small, and summed over three axes before normalising
            if name != "learnable_pos_embed":
                part.to(torch.bfloat16)
    return Denoiser(transformer).requires_grad_(False).eval().to(device)


def _compared(config: Config, weights: Located, denoiser: Denoiser) -> Difference | None:
    """Return how many weights differ from those that their run began with, if that can be said."""
    parameters = dict(denoiser.transformer.named_parameters())
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    found = comparison(weights, shapes, config.model.weights.path)
    return compare_all(found, parameters.items()) if found else None


def _read(path: Path) -> np.ndarray:
    return decode(path, list(range(probe(path).num_frames))).numpy()
