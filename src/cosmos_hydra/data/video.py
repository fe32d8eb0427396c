"""Decode frames, fit them to the clip size, and write videos.

Legend: F frames, H W picture height/width, C = 3 colour channels. Pixels are uint8 until a
tokenizer asks for [-1, 1].
"""

from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from cosmos_hydra import files
from cosmos_hydra.config import Fit
from cosmos_hydra.data.decoder import decord

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}
FRAMES_AT_ONCE = 16  # keeps the float copy of a resize small
DECODER_ERRORS = (decord.DECORDError, RuntimeError, IndexError, StopIteration, av.FFmpegError)
# words in the decoders' messages, and what they mean to a user
REASONS = {
    "avcodec_send_packet": "damaged frames",
    "threaded_decoder.cc": "damaged frames",
    "filter_graph.cc": "damaged frames",
    "broken metadata": "number of frames unknown",
    "Invalid data": "no video file, or cut off",
}


class UnreadableVideo(Exception):
    """A video file that cannot be decoded; the message is the reason, in a few words."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds. `start_s` has the presentation time of every frame, ascending."""

    num_frames: int
    fps: float
    height: int
    width: int
    start_s: np.ndarray


@dataclass(frozen=True)
class ContentBox:
    """Where the picture lies inside a padded clip, pixels."""

    top: int
    left: int
    height: int
    width: int


def probe(path: Path) -> VideoInfo:
    """Return what the file holds, decoding one frame.

    Raises: UnreadableVideo.
    """
    reader = _open(path)
    try:
        _, height, width, _ = _read_forward(path, [0]).shape
        start_s = _start_times(reader)
    except DECODER_ERRORS as error:
        raise UnreadableVideo(_reason(error)) from error
    fps = float(reader.get_avg_fps())
    if start_s is None:
        start_s = np.arange(len(reader)) / fps
    return VideoInfo(len(reader), fps, height, width, start_s)


def decode(path: Path, frame_indices: list[int]) -> torch.Tensor:
    """Return the frames asked for and no others, uint8 [F, H, W, 3].

    Raises: UnreadableVideo.
    """
    reader = _open(path)
    try:
        if _seeks_exactly(path, reader):
            # it fails on narrow videos (dmlc/decord#336), now and then on sound HEVC
            with suppress(decord.DECORDError):
                return torch.from_numpy(reader.get_batch(frame_indices).asnumpy())
        return torch.from_numpy(_read_forward(path, frame_indices))
    except DECODER_ERRORS as error:
        raise UnreadableVideo(_reason(error)) from error


def _seeks_exactly(path: Path, reader: Any) -> bool:
    """Return whether decord finds the frames behind a key frame.

    It numbers key frames in decoding order. Where frames shown earlier are decoded later (open
    GOPs: the default of x265, MPEG-4 with B-frames), it lands a few frames off without a word.
    """
    if _start_times(reader) is None:
        return False
    return _shown_key_frames(path, path.stat().st_mtime_ns) == list(reader.get_key_indices())


@lru_cache(maxsize=64)
def _shown_key_frames(path: Path, modified_ns: int) -> list[int]:
    """Return which frames, in the order they are shown, are key frames; reads no pixels."""
    with av.open(str(path)) as container:
        packets = [
            (packet.pts, packet.is_keyframe)
            for packet in container.demux(container.streams.best("video"))
            if packet.size
        ]
    shown = [is_key for _, is_key in sorted(packets, key=lambda packet: packet[0] or 0)]
    return [int(index) for index in np.flatnonzero(shown)]


def _start_times(reader: Any) -> np.ndarray | None:
    """Return the time each frame is shown, seconds; None if the file does not say, as some AVI."""
    start_s = np.asarray(reader.get_frame_timestamp(range(len(reader)))[:, 0], np.float64)
    return start_s if (np.diff(start_s) > 0).all() else None


def _read_forward(path: Path, frame_indices: list[int]) -> np.ndarray:
    """Return the frames asked for without decord, decoding all before them too."""
    wanted, frames = set(frame_indices), {}
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(container.streams.best("video"))):
            if index in wanted:
                # turned as decord does, which follows the display matrix
                turns = round(frame.rotation / 90)
                frames[index] = np.rot90(frame.to_ndarray(format="rgb24"), turns)
            if len(frames) == len(wanted):
                return np.stack([frames[index] for index in frame_indices])
    raise IndexError("fewer frames than announced")


def _open(path: Path) -> Any:
    if path.stat().st_size == 0:
        raise UnreadableVideo("empty file")
    try:
        # asked first, since decord adds lines of its own on stderr
        with av.open(str(path)) as container:
            if container.streams.best("video") is None:
                raise UnreadableVideo("no video stream")
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=0)
    except DECODER_ERRORS as error:
        raise UnreadableVideo(_reason(error)) from error
    if len(reader) == 0:
        raise UnreadableVideo("no frames")
    return reader


def _reason(error: Exception) -> str:
    for words, reason in REASONS.items():
        if words in str(error):
            return f"cannot be decoded ({reason})"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"cannot be decoded ({text.rpartition('] ')[2][:120]})"


def fit_frames(
    frames_FHWC: torch.Tensor, height: int, width: int, fit: Fit
) -> tuple[torch.Tensor, ContentBox]:
    """Return uint8 [3, F, height, width] and where in it the picture lies.

    crop keeps the aspect ratio and cuts the longer side evenly; pad keeps it and adds black
    borders; stretch changes it, as NVIDIA's script did. Bilinear with antialiasing.
    """
    source_height, source_width = frames_FHWC.shape[1:3]
    scales = (height / source_height, width / source_width)
    if fit is Fit.stretch:
        resized = (height, width)
    else:
        scale = max(scales) if fit is Fit.crop else min(scales)
        resized = (round(source_height * scale), round(source_width * scale))
    if fit is Fit.crop:
        resized = (max(resized[0], height), max(resized[1], width))
    small_FCHW = frames_FHWC.permute(0, 3, 1, 2)
    if resized != (source_height, source_width):
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
