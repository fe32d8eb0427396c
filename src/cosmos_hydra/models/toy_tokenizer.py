"""A tokenizer without weights to download: the best linear code of 8x8x8 pixel blocks.

The basis is fitted in closed form (principal components) on the data set's own clips, one for the
first frame (8x8 blocks) and one for groups of eight frames (8x8x8 blocks), 16 components each.
Legend: B batch, C channels, F frames, H W height/width, N blocks, P values of a block.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from cosmos_hydra import files
from cosmos_hydra.config import TokenizerKind
from cosmos_hydra.errors import StageError
from cosmos_hydra.reading import contained, read_tensors
from cosmos_hydra.seeds import torch_generator

BLOCK = 8
CHANNELS = 16
BLOCKS_PER_CLIP = 4096  # of a clip, at most, enter the fit
PARTS = {"first": 3 * BLOCK**2, "rest": 3 * BLOCK**3}  # values of a block


class ToyTokenizer:
    """The fitted transform; see the module text. Runs on the device of its input."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    @classmethod
    def fit(cls, clips: Iterable[torch.Tensor], seed: int) -> "ToyTokenizer":
        """Return the transform fitted on clips [3, F, H, W] in [-1, 1], F = 1 or 8k+1."""
        sums = {part: _Moments() for part in PARTS}
        for index, clip_CFHW in enumerate(clips):
            for part, blocks_NP in _blocks(clip_CFHW[None]).items():
                blocks_NP = blocks_NP.flatten(0, -2)
                if len(blocks_NP) > BLOCKS_PER_CLIP:
                    generator = torch_generator(seed, "tokenizer", index, part)
                    chosen = torch.randperm(len(blocks_NP), generator=generator)
                    blocks_NP = blocks_NP[chosen[:BLOCKS_PER_CLIP]]
                sums[part].add(blocks_NP)
        tensors = {}
        for part, moments in sums.items():
            if moments.count:
                for name, tensor in moments.transform().items():
                    tensors[f"{part}.{name}"] = tensor
        return cls(tensors)

    @classmethod
    def load(cls, path: Path) -> "ToyTokenizer":
        """Return the transform that `save` wrote.

        Raises: StageError when the file is damaged.
        """
        try:
            tensors = read_tensors(contained(path.parent, path.name))
            _check(tensors)
        except (OSError, ValueError) as error:
            raise StageError(
                f"{path} is damaged ({error}); remove its folder and make it again"
            ) from error
        return cls(tensors)

    def save(self, path: Path) -> None:
        """Write the transform crash-safely."""
        files.write_bytes(path, save(self.tensors))

    @property
    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            digest.update(name.encode() + self.tensors[name].numpy().tobytes())
        return {"kind": TokenizerKind.toy.name, "sha256": digest.hexdigest()}

    def encode(self, video_BCFHW: torch.Tensor) -> torch.Tensor:
        """Return latents [B, 16, 1 + (F-1)/8, H/8, W/8]."""
        parts = []
        for part, blocks_BFHWP in _blocks(signed(video_BCFHW)).items():
            mean_P, basis_PC, scale_C = self._part(part, video_BCFHW.device)
            parts.append((blocks_BFHWP - mean_P) @ basis_PC / scale_C)
        return torch.cat(parts, dim=1).permute(0, 4, 1, 2, 3).contiguous()

    def decode(self, latent_BCFHW: torch.Tensor) -> torch.Tensor:
        """Return the video [B, 3, F, H, W] of a latent."""
        codes_BFHWC = latent_BCFHW.float().permute(0, 2, 3, 4, 1)
        split = {"first": codes_BFHWC[:, :1], "rest": codes_BFHWC[:, 1:]}
        parts = []
        for part, codes in split.items():
            if codes.shape[1]:
                mean_P, basis_PC, scale_C = self._part(part, latent_BCFHW.device)
                parts.append(_unblock((codes * scale_C) @ basis_PC.T + mean_P, part))
        return torch.cat(parts, dim=2)

    def _part(self, part: str, device: torch.device) -> list[torch.Tensor]:
        return [self.tensors[f"{part}.{name}"].to(device) for name in ("mean", "basis", "scale")]


def signed(video: torch.Tensor) -> torch.Tensor:
    """Return a video as float32 in [-1, 1], which uint8 pixels are brought to."""
    return video.float() / 127.5 - 1.0 if video.dtype is torch.uint8 else video.float()


class _Moments:
    """Running sums for the covariance of blocks, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.sum_P = torch.zeros(())
        self.product_PP = torch.zeros(())

    def add(self, blocks_NP: torch.Tensor) -> None:
        self.count += len(blocks_NP)
        self.sum_P = self.sum_P + blocks_NP.double().sum(0)
        self.product_PP = self.product_PP + (blocks_NP.T @ blocks_NP).double()

    def transform(self) -> dict[str, torch.Tensor]:
        """Return mean [P], basis [P, 16] and the components' standard deviations [16]."""
        mean_P = self.sum_P / self.count
        covariance_PP = self.product_PP / self.count - torch.outer(mean_P, mean_P)
        variance_P, vectors_PP = torch.linalg.eigh(covariance_PP)
        basis_PC = vectors_PP[:, -CHANNELS:].flip(1)
        # eigenvectors come with either sign; fix it so that equal data give equal files
        largest = basis_PC.abs().argmax(0)
        basis_PC = basis_PC * basis_PC[largest, torch.arange(CHANNELS)].sign()
        # a flat video has components without variance
        scale_C = variance_P[-CHANNELS:].flip(0).clamp_min(1e-8).sqrt()
        return {
            "mean": mean_P.float(),
            "basis": basis_PC.float().contiguous(),
            "scale": scale_C.float(),
        }


def _check(tensors: dict[str, torch.Tensor]) -> None:
    """Raise ValueError unless the tensors are those of a fit, which may lack the second part."""
    shapes = {
        f"{part}.{name}": shape
        for part, values in PARTS.items()
        for name, shape in (
            ("mean", (values,)),
            ("basis", (values, CHANNELS)),
            ("scale", (CHANNELS,)),
        )
        if part == "first" or any(key.startswith(part) for key in tensors)
    }
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != shapes or any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        raise ValueError("it holds other tensors than a fitted tokenizer")


def _blocks(video_BCFHW: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return blocks [B, F', H/8, W/8, P] of the first frame and, if there are more, of the rest."""
    blocks = {"first": _block(video_BCFHW[:, :, :1], 1)}
    if video_BCFHW.shape[2] > 1:
        blocks["rest"] = _block(video_BCFHW[:, :, 1:], BLOCK)
    return blocks


def _block(video_BCFHW: torch.Tensor, frames: int) -> torch.Tensor:
    B, C, F, H, W = video_BCFHW.shape
    cells = video_BCFHW.reshape(B, C, F // frames, frames, H // BLOCK, BLOCK, W // BLOCK, BLOCK)
    return cells.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def _unblock(blocks_BFHWP: torch.Tensor, part: str) -> torch.Tensor:
    frames = 1 if part == "first" else BLOCK
    B, F, H, W, _ = blocks_BFHWP.shape
    cells = blocks_BFHWP.reshape(B, F, H, W, 3, frames, BLOCK, BLOCK)
    return cells.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(B, 3, F * frames, H * BLOCK, W * BLOCK)
