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

    def compare(self, sample: Sample, latent_CFHW: torch.Tensor) -> None:
        """Take the sample if it is nearer; its latent is given as float32 on our device."""
        distance = (self.latent_CFHW - latent_CFHW).square().mean().sqrt().item()
        if distance < self.distance:
            self.sample, self.distance = sample, distance


class TrainingClips:
    """The clips a checkpoint was trained on, to compare generated ones with.

    Where they are gone, have changed or cannot be read, one line says so and nothing is compared.
    """

    def __init__(self, checkpoint: Checkpoint, tokenizer: Tokenizer, device: torch.device) -> None:
        self.tokenizer, self.device = tokenizer, device
        self.usual: float | None = None  # distance of held-out clips, known after the first search
        self.is_first = True
        self.store: SampleStore | None = None
        path = str(checkpoint.manifest["config"]["data"]["path"])
        try:
            store = open_store(path)
            if store.content_hash != checkpoint.manifest["data"]:
                raise StageError(f"data.path={path} holds other samples than were trained on")
            self.ids = _some(store.splits[TRAIN], MAX_TRAINING_CLIPS)
            if len(self.ids) < (total := len(store.splits[TRAIN])):
                logger.info(
                    f"nearest training clips are looked for among {len(self.ids)} of {total}"
                )
            self.store = store
        except StageError as error:
            logger.info(f"no nearest training clips: {error}")

    def write_nearest(self, mp4: Path, latent_CFHW: torch.Tensor) -> None:
        """Write the training clip nearest to a generated one beside its mp4.

        latent_CFHW is float32 on the device.
        """
        if self.store is None:
            return
        near = Nearest(latent_CFHW)
        try:
            compared = self._search(self.store, near)
        except StageError as error:
            logger.info(f"no nearest training clips: {error}")
            self.store = None
            return
        if near.sample is None:
            return  # other size, or no finite numbers
        entries = {entry["id"]: entry for entry in self.store.manifest["samples"]}
        facts = {
            "sample": near.sample.id,
            "video": entries[near.sample.id].get("video"),
            "start_frame": entries[near.sample.id].get("start_frame"),
            "caption": near.sample.caption,
            "distance": near.distance,
            "held_out_distance": self.usual,
            "compared": compared,
        }
        clip_BCFHW = near.sample.latent_CFHW[None].to(self.device).float()
        frames_FHWC = to_pixels(self.tokenizer.decode(clip_BCFHW)[0])
        write_mp4(mp4.with_suffix(".nearest.mp4"), frames_FHWC, near.sample.fps)
        files.write_json(mp4.with_suffix(".nearest.json"), facts)

    def _search(self, store: SampleStore, near: Nearest) -> int:
        """Compare with every training clip, the first time held-out clips too; return how many.

        Raises: StageError when a sample cannot be read.
        """
        shape = near.latent_CFHW.shape
        held_out_ids = _some(store.splits[HELD_OUT], MAX_HELD_OUT_CLIPS) if self.is_first else []
        held_out = [
            Nearest(sample.latent_CFHW.to(self.device).float())
            for sample in map(store.load, held_out_ids)
            if sample.latent_CFHW.shape == shape
        ]
        compared = 0
        for sample in map(store.load, self.ids):
            if sample.latent_CFHW.shape == shape:
                clip_CFHW = sample.latent_CFHW.to(self.device).float()
                for query in (near, *held_out):
                    query.compare(sample, clip_CFHW)
                compared += 1
        if held_out and compared:
            self.usual = float(np.median([query.distance for query in held_out]))
        self.is_first = False
        return compared


def _some(ids: list[str], count: int) -> list[str]:
    """Return at most `count` of the ids, always the same."""
    if len(ids) <= count:
        return ids
    chosen = numpy_generator("nearest").choice(len(ids), count, replace=False)
    return [ids[index] for index in sorted(chosen)]
