"""What a Video2World model is given to go on from: a picture, or the last frames of a video.

Legend: C channels, F frames, L latent frames, H W height/width.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from cosmos_hydra import files
from cosmos_hydra.checks import TEMPORAL_FACTOR
from cosmos_hydra.config import Config, Fit
from cosmos_hydra.data.clips import TIME_TOLERANCE_S
from cosmos_hydra.data.decode_pool import VideoInfo
from cosmos_hydra.data.video import UnreadableVideo, decode, fit_frames, probe, to_signed
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.models.tokenizer import Tokenizer

PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
FORMATS = ("BMP", "JPEG", "PNG", "WEBP")  # of others, some start programs


@dataclass(frozen=True)
class Input:
    """Frames of a file; a picture has one."""

    path: Path
    frame_indices: tuple[int, ...]
    pixel_aspect: float

    @property
    def latent_frames(self) -> int:
        return 1 + (len(self.frame_indices) - 1) // TEMPORAL_FACTOR

    def facts(self, config: Config) -> dict[str, Any]:
        """Return what of it decides a video's content."""
        return {
            "sha256": files.sha256_of(self.path),
            "frames": list(self.frame_indices),
            "fit": _fit(config).name,
        }

    def __str__(self) -> str:
        if is_picture(self.path):
            return str(self.path)
        first, last = self.frame_indices[0], self.frame_indices[-1]
        if first == last:
            return f"frame {first} of {self.path}"
        return f"{len(self.frame_indices)} frames of {self.path}, {first} to {last}"


def is_picture(path: Path) -> bool:
    """Return whether a file is a picture, by its name."""
    return path.suffix.lower() in PICTURES


def find_input(config: Config) -> Input | None:
    """Return what is given, or None for a Text2World model and where nothing is.

    `config` has the checkpoint's model and clip. Raises: ConfigError.
    """
    generate, model = config.generate, config.model
    if generate.input is None:
        if generate.input_frames is not None:
            raise ConfigError(
                f"generate.input_frames={generate.input_frames} but generate.input=null; set it to "
                f"a picture or a video"
            )
        if model.condition_mask and 0 not in model.objective.given_frames:
            raise ConfigError(
                f"generate.input=null but model={model.name} was trained with "
                f"given_frames={model.objective.given_frames}; set it to a picture or a video"
            )
        return None
    if not model.condition_mask:
        raise ConfigError(
            f"generate.input={generate.input} but model={model.name} is a Text2World model; leave "
            f"it out, or use a Video2World model"
        )
    path = Path(generate.input).expanduser()
    if not path.is_file():
        raise ConfigError(f"generate.input={path} is no file; set it to a picture or a video")
    if is_picture(path):
        _open_picture(path)
        _frames(config, path, available=1)
        return Input(path, (0,), 1.0)
    try:
        info = probe(path)
    except UnreadableVideo as error:
        raise ConfigError(
            f"generate.input={path} is no readable video ({error}); set it to a picture "
            f"({', '.join(sorted(PICTURES))}) or a video"
        ) from error
    assert config.data.fps is not None
    available = 1 + int((info.start_s[-1] - info.start_s[0] + TIME_TOLERANCE_S) * config.data.fps)
    count = _frames(config, path, available)
    return Input(path, _last_frames(info, count, config.data.fps), info.pixel_aspect)


def encode_input(given: Input, config: Config, tokenizer: Tokenizer) -> torch.Tensor:
    """Return the latent of what is given, [C, L, H, W] of unit deviation, as the tokenizer has it.

    Grey frames follow up to the length of a clip, as in the original; the tokenizer looks back
    only. Raises: ConfigError.
    """
    data = config.data
    try:
        frames_FHWC = (
            _open_picture(given.path)
            if is_picture(given.path)
            else decode(given.path, list(given.frame_indices))
        )
    except UnreadableVideo as error:
        raise ConfigError(f"generate.input={given.path} is no readable video ({error})") from error
    size = (data.height, data.width, _fit(config), given.pixel_aspect)
    video_CFHW = to_signed(fit_frames(frames_FHWC, *size)[0])
    grey_CFHW = torch.zeros(3, data.frames - video_CFHW.shape[1], data.height, data.width)
    whole_CFHW = torch.cat([video_CFHW, grey_CFHW], dim=1)
    return tokenizer.encode(whole_CFHW[None])[0][:, : given.latent_frames]


def _fit(config: Config) -> Fit:
    # generated clips have no borders
    return Fit.crop if config.data.fit is Fit.pad else config.data.fit


def _frames(config: Config, path: Path, available: int) -> int:
    """Return how many frames are given. Raises: ConfigError."""
    trained = config.model.objective.given_frames
    counts = [1 + TEMPORAL_FACTOR * (number - 1) for number in trained if number > 0]
    legal = [count for count in counts if count < config.data.frames]
    if not legal:
        raise ConfigError(
            f"generate.input={path} leaves nothing to make of data.frames={config.data.frames} "
            f"for model={config.model.name} (given_frames={trained}); use a longer clip, or leave "
            f"it out"
        )
    fitting = [count for count in legal if count <= available]
    wanted = config.generate.input_frames
    if wanted is None:
        if not fitting:
            raise ConfigError(
                f"generate.input={path} has {available} frames at {config.data.fps:g} fps, but "
                f"model={config.model.name} is given {min(legal)} or more"
            )
        return max(fitting)
    choice = f"use {' or '.join(map(str, fitting))}" if fitting else "use another generate.input"
    if wanted not in legal:
        raise ConfigError(
            f"generate.input_frames={wanted} is not what model={config.model.name} was trained "
            f"with (given_frames={trained}); {choice}"
        )
    if wanted not in fitting:
        raise ConfigError(
            f"generate.input_frames={wanted} but {path} has {available} frames at "
            f"{config.data.fps:g} fps; {choice}"
        )
    return wanted


def _last_frames(info: VideoInfo, count: int, fps: float) -> tuple[int, ...]:
    """Return the last frames of a video at a rate, which need not be its own."""
    times_s = info.start_s[-1] - np.arange(count - 1, -1, -1) / fps + TIME_TOLERANCE_S
    return tuple(int(i) for i in np.searchsorted(info.start_s, times_s, side="right") - 1)


def _open_picture(path: Path) -> torch.Tensor:
    """Return a picture as shown, uint8 [1, H, W, 3]. Raises: ConfigError."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
        raise ConfigError(f"generate.input={path} cannot be read ({error})") from error
    return torch.from_numpy(np.array(upright))[None]
