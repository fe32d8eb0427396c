"""What training will see of the videos: clips decoded back from their latents, beside the source.

`previews/` in the folder of samples, or beside it where every file counts as a sample, is made
anew each time: contact sheets, an mp4 of each clip (source left, decoded right), and a table.
Legend: C channels, F frames, H W height/width.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from cosmos_hydra import files
from cosmos_hydra.config import DataConfig
from cosmos_hydra.data.clips import Clip
from cosmos_hydra.data.store import Sample, SampleStore
from cosmos_hydra.data.video import ContentBox, fit_frames, to_pixels, write_mp4
from cosmos_hydra.logs import progress
from cosmos_hydra.models.tokenizer import Tokenizer
from cosmos_hydra.tracking.pictures import COLUMNS, contact_sheet, save_picture

CLIPS_ON_A_SHEET = 4
PERFECT_DB = 100.0  # where nothing differs
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preview:
    """One clip: how much of it survives the tokenizer."""

    sample: str
    video: str
    start_frame: int
    fps: float
    caption: str
    psnr_db: float


def write_previews(
    store: SampleStore,
    clips: dict[str, Clip],
    read: Callable[[Clip], torch.Tensor],
    tokenizer: Tokenizer,
    data: DataConfig,
    count: int,
) -> Path:
    """Show some samples, evenly spread, and return the folder of the pictures.

    `clips` has those that samples were made from, and `read` returns a clip's frames as recorded.
    """
    made = [name for split in store.splits.values() for name in split if name in clips]
    made.sort(key=lambda name: (clips[name].video, clips[name].start_frame))
    chosen = [
        made[index] for index in np.linspace(0, len(made) - 1, min(count, len(made)), dtype=int)
    ]
    folder = store.layout.beside("previews")
    previews: list[Preview] = []
    rows: list[tuple[str, np.ndarray]] = []
    with files.new_folder(folder) as place, progress("preview", len(chosen), "clips") as bar:
        for sample_id in chosen:
            clip, sample = clips[sample_id], store.load(sample_id)
            source_FHWC, decoded_FHWC, box = _both(sample, clip, read(clip), tokenizer, data)
            psnr_db = _psnr_db(source_FHWC, decoded_FHWC, box)
            previews.append(
                Preview(
                    sample_id, clip.video, clip.start_frame, sample.fps, sample.caption, psnr_db
                )
            )
            rows += [
                (f"{sample_id}: {sample.caption} ({sample.fps:g} fps)", _some(source_FHWC)),
                (f"decoded from its latent, PSNR {psnr_db:.1f} dB", _some(decoded_FHWC)),
            ]
            both_FHWC = np.concatenate([source_FHWC, decoded_FHWC], axis=2)
            write_mp4(place / f"{sample_id}.mp4", both_FHWC, sample.fps)
            bar.advance()
        on_a_sheet = 2 * CLIPS_ON_A_SHEET
        for number, start in enumerate(range(0, len(rows), on_a_sheet)):
            sheet = contact_sheet(rows[start : start + on_a_sheet])
            save_picture(sheet, place / f"sheet_{number}.png")
        files.write_json(place / "previews.json", [asdict(preview) for preview in previews])
    mean_db = float(np.mean([preview.psnr_db for preview in previews]))
    worst = min(previews, key=lambda preview: preview.psnr_db)
    logger.info(
        f"decoded back from their latents, {len(previews)} clips have a mean PSNR of {mean_db:.1f} "
        f"dB, the least {worst.psnr_db:.1f} dB ({worst.video}); pictures: {folder}"
    )
    return folder


def _both(
    sample: Sample, clip: Clip, frames_FHWC: torch.Tensor, tokenizer: Tokenizer, data: DataConfig
) -> tuple[np.ndarray, np.ndarray, ContentBox]:
    """Return a clip as it was given to the tokenizer, and as that gives it back."""
    size = (data.height, data.width, data.fit, clip.pixel_aspect)
    source_CFHW, box = fit_frames(frames_FHWC, *size)
    source_FHWC = np.ascontiguousarray(source_CFHW.permute(1, 2, 3, 0).numpy())
    return source_FHWC, to_pixels(tokenizer.decode(sample.latent_CFHW[None])[0]), box


def _psnr_db(source_FHWC: np.ndarray, decoded_FHWC: np.ndarray, box: ContentBox) -> float:
    """Return the peak signal-to-noise ratio of 8-bit pixels, without borders that were added."""
    rows = slice(box.top, box.top + box.height)
    columns = slice(box.left, box.left + box.width)
    # frame by frame, since float copies of a whole clip are large
    error = np.mean(
        [
            np.square(source[rows, columns].astype(np.float32) - decoded[rows, columns]).mean()
            for source, decoded in zip(source_FHWC, decoded_FHWC, strict=True)
        ]
    )
    return min(PERFECT_DB, 10 * math.log10(255**2 / error)) if error else PERFECT_DB


def _some(clip_FHWC: np.ndarray) -> np.ndarray:
    """Return the frames that a contact sheet shows."""
    shown = np.linspace(0, len(clip_FHWC) - 1, min(COLUMNS, len(clip_FHWC)))
    return clip_FHWC[shown.round().astype(int)]
