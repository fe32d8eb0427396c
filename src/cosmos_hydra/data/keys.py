"""Names of samples: hashes of all that decides their bytes, so that equal names hold equal things.

A sample is called `<clip>-<facts>`. Samples with the same first part have the same latent.
"""

from typing import Any

from cosmos_hydra import files
from cosmos_hydra.config import DataConfig
from cosmos_hydra.data.clips import Clip

# to be raised when the program makes other bytes from the same things
LATENT_VERSION, FACTS_VERSION, TEXT_VERSION, FIT_VERSION = 1, 1, 1, 1
DIGITS = 16
# what the basis of the toy tokenizer is fitted under; the videos may change, the basis stays
FIT_SETTINGS = ("frames", "height", "width", "fps", "fit", "seed", "tokenizer_clips")


def _key(*parts: Any) -> str:
    return files.sha256_of_json(parts)[:DIGITS]


def clip_key(clip: Clip, video_sha256: str, data: DataConfig, tokenizer: dict[str, Any]) -> str:
    """Return what a latent depends on, hashed; `tokenizer` is its identity."""
    shape = (data.height, data.width, data.fit.name)
    return _key("latent", LATENT_VERSION, video_sha256, clip.frame_indices, *shape, tokenizer)


def sample_key(clip: str, video: str, fps: float, text: str, about: str) -> str:
    """Return a sample's name from the keys of its clip and its caption, and what else is known."""
    return f"{clip}-{_key('facts', FACTS_VERSION, video, fps, text, about)}"


def text_key(caption: str, encoder: dict[str, Any]) -> str:
    """Return what a caption's embedding depends on, hashed; `encoder` is its identity."""
    return _key("text", TEXT_VERSION, caption, encoder)


def fit_key(settings: dict[str, Any]) -> str:
    """Return what the fit of the toy tokenizer depends on but the videos, hashed."""
    return _key("fit", FIT_VERSION, {name: settings["data"][name] for name in FIT_SETTINGS})


def clip_part(sample_id: str) -> str:
    """Return the part of a sample's name that its latent decides."""
    return sample_id.partition("-")[0]
