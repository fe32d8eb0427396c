"""Is a generated clip a copy? Find the training clip that is most like it.

Beside `{stem}.mp4` lie `{stem}.nearest.mp4`, that training clip decoded from its latent, and,
written after it, `{stem}.nearest.json`. A distance is the root mean square over the elements of
latents of unit deviation; that of held-out clips to their nearest training clip says what is usual.
Legend: C channels, F latent frames, H W latent height/width.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cosmos_hydra import files
from cosmos_hydra.data.clips import HELD_OUT, TRAIN
from cosmos_hydra.data.store import Sample, SampleStore, open_store
from cosmos_hydra.data.video import to_pixels, write_mp4
from cosmos_hydra.engines.torch.checkpoint import Checkpoint
from cosmos_hydra.errors import StageError
from cosmos_hydra.models.tokenizer import Tokenizer
from cosmos_hydra.seeds import numpy_generator

MAX_TRAINING_CLIPS = 2000
MAX_HELD_OUT_CLIPS = 8
logger = logging.getLogger(__name__)


@dataclass
class Nearest:
    """The training clip nearest to a latent, so far."""

    latent_CFHW: torch.Tensor
    sample: Sample | None = None
    distance: float = float("inf")

    def compare(self, sample: Sample, latent_CFHW: torch.Tensor) -> None:  # noqa: N803
        """Take the sample if it is nearer; its latent is given as float32 on our device."""
        distance = (self.latent_CFHW - latent_CFHW).square().mean().sqrt().item()
        if distance < self.distance:
            self.sample, self.distance = sample, distance


def write_nearest(
    latents: dict[Path, torch.Tensor],
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    device: torch.device,
) -> bool:
    """Write the nearest training clip beside each generated video; return whether there is one.

    `latents` holds float32 [C, F, H, W] by the path of the mp4. Where the training samples are gone
    or have changed this does nothing but say so.
    """
    path = str(checkpoint.manifest["config"]["data"]["path"])
    try:
        store = open_store(path)
        if store.content_hash != checkpoint.manifest["data"]:
            raise StageError(f"data.path={path} holds other samples than were trained on")
        queries = [Nearest(latent_CFHW) for latent_CFHW in latents.values()]
        usual, compared = _search(store, queries)
    except StageError as error:
        logger.info(f"no nearest training clips: {error}")
        return False
    entries = {entry["id"]: entry for entry in store.manifest["samples"]}
    for mp4, near in zip(latents, queries, strict=True):
        assert near.sample is not None
        facts = {
            "sample": near.sample.id,
            "video": entries[near.sample.id].get("video"),
            "start_frame": entries[near.sample.id].get("start_frame"),
            "caption": near.sample.caption,
            "distance": near.distance,
            "held_out_distance": usual,
            "compared": compared,
        }
        clip_BCFHW = near.sample.latent_CFHW[None].to(device).float()
        frames_FHWC = to_pixels(tokenizer.decode(clip_BCFHW)[0])
        write_mp4(mp4.with_suffix(".nearest.mp4"), frames_FHWC, near.sample.fps)
        files.write_json(mp4.with_suffix(".nearest.json"), facts)
    return True


def _search(store: SampleStore, queries: list[Nearest]) -> tuple[float | None, int]:
    """Find the training clip nearest to each query, reading each training clip once.

    Return the median distance of held-out clips to theirs, and how many clips were compared.
    Raises: StageError when a sample cannot be read or none has the shape of the queries.
    """
    shape, device = queries[0].latent_CFHW.shape, queries[0].latent_CFHW.device
    held_out = [
        Nearest(sample.latent_CFHW.to(device).float())
        for sample in map(store.load, _some(store.splits[HELD_OUT], MAX_HELD_OUT_CLIPS))
        if sample.latent_CFHW.shape == shape
    ]
    ids, total = _some(store.splits[TRAIN], MAX_TRAINING_CLIPS), len(store.splits[TRAIN])
    if len(ids) < total:
        logger.info(f"nearest training clips are looked for among {len(ids)} of {total}")
    compared = 0
    for sample in map(store.load, ids):
        if sample.latent_CFHW.shape == shape:
            clip_CFHW = sample.latent_CFHW.to(device).float()
            for query in (*queries, *held_out):
                query.compare(sample, clip_CFHW)
            compared += 1
    if not compared:
        raise StageError(f"data.path={store.layout.folder} holds no clip of the generated size")
    usual = float(np.median([near.distance for near in held_out])) if held_out else None
    return usual, compared


def _some(ids: list[str], count: int) -> list[str]:
    """Return at most `count` of the ids, always the same."""
    if len(ids) <= count:
        return ids
    chosen = numpy_generator("nearest").choice(len(ids), count, replace=False)
    return [ids[index] for index in sorted(chosen)]
