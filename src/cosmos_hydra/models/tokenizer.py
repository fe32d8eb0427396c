"""Tokenizers: video in [-1, 1] to latents of unit standard deviation per channel, and back.

Both are causal with factor 8 in time and space and 16 channels: F frames, 1 or 8k+1, give
1 + (F-1)/8 latent frames. The factor sigma_data of the diffusion model is not in the latents.
Legend: B batch, C channels, F frames (pixel or latent), H W height/width (pixel or latent).
"""

from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from cosmos_hydra.config import ModelConfig, TokenizerKind
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.hub.sources import download_advice
from cosmos_hydra.models.fast_autoencoder import EAGER, Way, compiled, speed_up
from cosmos_hydra.models.identity import TOKENIZER, folder_identity, weights_folder
from cosmos_hydra.models.pretrained import load_pretrained
from cosmos_hydra.models.toy_tokenizer import ToyTokenizer, signed


class Tokenizer(Protocol):
    """What preprocessing and generation need of a tokenizer."""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells two tokenizers apart; latents are only valid with the same one."""

    def encode(self, video_BCFHW: torch.Tensor) -> torch.Tensor:
        """Return float32 latents of a video in [-1, 1], or of its uint8 pixels."""

    def decode(self, latent_BCFHW: torch.Tensor) -> torch.Tensor:
        """Return the float32 video of a latent, about [-1, 1], not clamped."""


class CosmosTokenizer:
    """AutoencoderKLCosmos from a folder in diffusers layout, deterministic.

    Latents are (z - mean) / std with one number per channel and latent frame, cut to the clip's
    latent frames (diffusers `CosmosTextToWorldPipeline`). Loaded on first use. `ways` are those in
    which it is made faster on a GPU.
    """

    def __init__(self, path: Path, device: torch.device, ways: Collection[Way] = EAGER) -> None:
        self.device = device
        self.ways = ways if device.type == "cuda" else ()
        self._encode = compiled(self._raw_latent, self.ways)
        self._decode = compiled(self._video, self.ways)
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.path = path

    @cached_property
    def autoencoder(self) -> Any:
        from diffusers import AutoencoderKLCosmos

        loaded = load_pretrained(
            AutoencoderKLCosmos, "model.tokenizer.path", self.path, torch_dtype=self.dtype
        ).to(self.device)
        speed_up(loaded, self.ways)
        return loaded

    @property
    def identity(self) -> dict[str, Any]:
        return {"kind": TokenizerKind.cosmos.name, **folder_identity(self.path)}

    @torch.no_grad()
    def encode(self, video_BCFHW: torch.Tensor) -> torch.Tensor:
        raw_BCFHW = self._encode(self.autoencoder, video_BCFHW.to(self.device))
        mean, std = self._statistics(raw_BCFHW.shape[2])
        return (raw_BCFHW - mean) / std

    @torch.no_grad()
    def decode(self, latent_BCFHW: torch.Tensor) -> torch.Tensor:
        latent_BCFHW = latent_BCFHW.to(self.device).float()
        mean, std = self._statistics(latent_BCFHW.shape[2])
        return self._decode(self.autoencoder, latent_BCFHW * std + mean)

    def _raw_latent(self, autoencoder: Any, video_BCFHW: torch.Tensor) -> torch.Tensor:
        video_BCFHW = signed(video_BCFHW).to(self.dtype)
        return autoencoder.encode(video_BCFHW).latent_dist.mode().float()

    def _video(self, autoencoder: Any, raw_BCFHW: torch.Tensor) -> torch.Tensor:
        return autoencoder.decode(raw_BCFHW.to(self.dtype)).sample.float()

    @cached_property
    def _all_statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation as [C, F] or [C, 1], kept on the device.

        To copy them there for every clip would have the host wait for the clip before.
        """
        config = self.autoencoder.config
        channels = config.latent_channels
        mean = config.latents_mean or [0.0] * channels
        std = config.latents_std or [1.0] * channels
        return (
            torch.tensor(mean, device=self.device).view(channels, -1),
            torch.tensor(std, device=self.device).view(channels, -1),
        )

    def _statistics(self, num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation as [1, C, F, 1, 1]."""
        mean_CF, std_CF = self._all_statistics
        # one number a channel serves every frame
        known = mean_CF.shape[1] if mean_CF.shape[1] > 1 else num_frames
        if num_frames > known:
            raise ConfigError(
                f"data.frames gives {num_frames} latent frames but the tokenizer has statistics "
                f"for {known}; at most {1 + 8 * (known - 1)} frames"
            )
        return (
            mean_CF[None, :, :num_frames, None, None],
            std_CF[None, :, :num_frames, None, None],
        )


def load_tokenizer(
    model: ModelConfig, fitted: Path, device: torch.device, ways: Collection[Way] = EAGER
) -> Tokenizer:
    """Return the configured tokenizer; a toy one comes from the file `fitted`."""
    if model.tokenizer.kind is TokenizerKind.toy:
        if not fitted.is_file():
            raise ConfigError(
                "model.tokenizer.kind=toy but there is no fitted tokenizer, it lies in a run; "
                "use a run or a step, or model.tokenizer.kind=cosmos with model.tokenizer.path"
            )
        return ToyTokenizer.load(fitted)
    if not model.tokenizer.path:
        advice = download_advice(model, model.tokenizer.repo)
        raise ConfigError(
            f"model.tokenizer.path=null; {advice}set it to the folder of AutoencoderKLCosmos"
        )
    path = weights_folder("model.tokenizer.path", model.tokenizer.path, TOKENIZER)
    return CosmosTokenizer(path, device, ways)
