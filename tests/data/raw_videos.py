"""Raw videos whose every frame says its number, damaged files, and the config to prepare them."""

from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from conftest import SMALL
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from cosmos_hydra import config as schema
from cosmos_hydra import files
from cosmos_hydra.config import Config
from cosmos_hydra.data import sources
from cosmos_hydra.data.inventory import Inventory, take_inventory
from cosmos_hydra.data.video import write_mp4
from cosmos_hydra.overrides import conf_folder

BLOCK = 32  # pixels of one bit
COLUMNS, ROWS = 5, 2
CLOSED_GOPS = {"g": "20", "bf": "3", "x264-params": "scenecut=0:b-adapt=0"}


def numbered_frames(count: int) -> np.ndarray:
    """Return uint8 [count, 64, 160, 3]; the black and white blocks of a frame are its bits."""
    bits = np.arange(count)[:, None] >> np.arange(ROWS * COLUMNS) & 1
    blocks = (255 * bits).astype(np.uint8).reshape(count, ROWS, COLUMNS)
    picture = blocks.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2)
    return np.ascontiguousarray(picture[..., None].repeat(3, axis=-1))


def number_of(picture_HWC: Any) -> int:
    """Return the number that a frame says, whatever its size."""
    picture = np.asarray(picture_HWC).mean(-1)
    height, width = picture.shape[0] / ROWS, picture.shape[1] / COLUMNS
    number = 0
    for bit in range(ROWS * COLUMNS):
        row, column = divmod(bit, COLUMNS)
        centre = picture[int((row + 0.5) * height), int((column + 0.5) * width)]
        number |= int(centre > 127) << bit
    return number


def write_video(
    path: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    times_ms: list[int] | None = None,
    muxer: dict[str, str] | None = None,
    fps: int = 25,
) -> None:
    """Write frames with any codec; `times_ms` gives every frame its time stamp."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", options or {}
        if times_ms:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times_ms:
                frame.pts, frame.time_base = times_ms[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_damaged_video(path: Path, num_frames: int, first: int, stop: int) -> None:
    """Write key frames every 20 frames; the bytes of frames [first, stop) are then overwritten."""
    write_video(path, numbered_frames(num_frames), options=CLOSED_GOPS)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        places = [(packet.pos, packet.size) for packet in packets[first:stop]]
    content = bytearray(path.read_bytes())
    for position, size in places:
        content[position : position + size] = b"\xff" * size
    path.write_bytes(content)


def write_moving_video(path: Path, seed: int, frames: int = 17, fps: float = 12.0) -> None:
    """Write 48x64 coloured blocks that move sideways."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = blocks.repeat(8, axis=0).repeat(8, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, np.stack([np.roll(picture, 2 * t, axis=1) for t in range(frames)]), fps)


@cache
def _composed(data: str) -> DictConfig:
    schema.register()
    typed = ["stage=preprocess", f"data={data}", *SMALL, "data.frames=1"]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", overrides=typed)


def small_config(root: Path, *overrides: str, data: str = "folder") -> Config:
    """Return the config that turns root/raw into root/samples, 48x64 pixels.

    Clips are single frames: fitting the tokenizer of longer ones takes a second.
    """
    places = {"source": f"{root / 'raw'}", "path": f"{root / 'samples'}", "prompt": "a robot moves"}
    typed = OmegaConf.from_dotlist(list(overrides))
    return schema.load(OmegaConf.merge(_composed(data), {"data": places}, typed))


def inventory_of(config: Config) -> Inventory:
    """Return what a source offers, with the hashes that a plan would bring."""
    found = sources.find(config.data)
    return take_inventory(
        config, found, {one.name: files.sha256_of(one.video) for one in found.episodes}
    )
