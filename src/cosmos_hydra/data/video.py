"""Decode single videos, fit frames to the clip size, and write videos.

Legend: F frames, H W picture height/width, C = 3 colour channels. Pixels are uint8 until a
tokenizer asks for [-1, 1].
"""

import atexit
import os
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import torch

from cosmos_hydra import files
from cosmos_hydra.config import Fit
from cosmos_hydra.data.decode_pool import DecodePool, VideoInfo
from cosmos_hydra.data.decode_worker import UnreadableVideo as UnreadableVideo

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}
FRAMES_AT_ONCE = 16  # keeps the float copy of a resize small


@dataclass(frozen=True)
class ContentBox:
    """Where the picture lies inside a padded clip, pixels."""

    top: int
    left: int
    height: int
    width: int


def probe(path: Path) -> VideoInfo:
    """Return what the file holds, decoding one frame, in a process of its own.

    Raises: UnreadableVideo.
    """
    return _pool(os.getpid()).probe(path)


def decode(path: Path, frame_indices: list[int]) -> torch.Tensor:
    """Return the frames asked for and no others, uint8 [F, H, W, 3].

    Raises: UnreadableVideo.
    """
    return torch.from_numpy(_pool(os.getpid()).decode(path, frame_indices))


@cache
def _pool(process: int) -> DecodePool:
    """Return this process's pool; a forked process gets one of its own."""
    pool = DecodePool(os.cpu_count() or 1)
    atexit.register(pool.close)
    return pool


def fit_frames(
    frames_FHWC: torch.Tensor, height: int, width: int, fit: Fit, pixel_aspect: float = 1.0
) -> tuple[torch.Tensor, ContentBox]:
    """Return uint8 [3, F, height, width] and where in it the picture lies.

    crop keeps the aspect ratio and cuts the longer side evenly; pad keeps it and adds black
    borders; stretch changes it, as NVIDIA's script did. Bilinear with antialiasing. The aspect
    ratio is that of the picture as shown: `pixel_aspect` is the width of a pixel over its height.
    """
    source_height, source_width = frames_FHWC.shape[1], frames_FHWC.shape[2] * pixel_aspect
    scales = (height / source_height, width / source_width)
    if fit is Fit.stretch:
        resized = (height, width)
    else:
        scale = max(scales) if fit is Fit.crop else min(scales)
        resized = (round(source_height * scale), round(source_width * scale))
    if fit is Fit.crop:
        resized = (max(resized[0], height), max(resized[1], width))
    small_FCHW = frames_FHWC.permute(0, 3, 1, 2)
    if resized != tuple(frames_FHWC.shape[1:3]):
        parts = small_FCHW.split(FRAMES_AT_ONCE)
        small_FCHW = torch.cat([_resize(part_FCHW, resized) for part_FCHW in parts])
    top, left = (resized[0] - height) // 2, (resized[1] - width) // 2
    if fit is not Fit.pad:
        cut_FCHW = small_FCHW[:, :, top : top + height, left : left + width]
        return cut_FCHW.transpose(0, 1).contiguous(), ContentBox(0, 0, height, width)
    box = ContentBox(-top, -left, resized[0], resized[1])
    padded_FCHW = small_FCHW.new_zeros(len(small_FCHW), 3, height, width)
    padded_FCHW[:, :, box.top : box.top + box.height, box.left : box.left + box.width] = small_FCHW
    return padded_FCHW.transpose(0, 1).contiguous(), box


def _resize(frames_FCHW: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    resized = torch.nn.functional.interpolate(
        frames_FCHW.float(), size=size, mode="bilinear", antialias=True, align_corners=False
    )
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def to_signed(video_CFHW: torch.Tensor) -> torch.Tensor:
    """Return uint8 pixels as float32 in [-1, 1]."""
    return video_CFHW.float().div_(127.5).sub_(1.0)


def to_pixels(video_CFHW: torch.Tensor) -> np.ndarray:
    """Return a video in [-1, 1] as uint8 [F, H, W, 3]."""
    pixels = (video_CFHW.float() + 1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(1, 2, 3, 0).cpu().numpy())


def write_mp4(path: Path, frames_FHWC: np.ndarray, fps: float, crf: int = 16) -> None:
    """Write uint8 [F, H, W, 3] as H.264, crash-safely; equal frames give equal bytes.

    Height and width must be even.
    """
    files.write_with(path, lambda temporary: _encode(temporary, frames_FHWC, fps, crf))


def _encode(path: Path, frames_FHWC: np.ndarray, fps: float, crf: int) -> None:
    _, height, width, _ = frames_FHWC.shape
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # the number of threads changes the bytes; so does x264's macroblock tree, now and then, by
        # itself (seen with x264 165 of PyAV 18: 15 of 100 encodings of one clip differed)
        stream.options = {"crf": str(crf), "preset": "medium", "threads": "1", "mbtree": "0"}
        for frame_HWC in frames_FHWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())
