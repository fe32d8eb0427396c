"""Turn videos into samples: fit or load the tokenizer, encode captions once each, encode clips.

The same command goes on where it stopped, does nothing when all is done, and makes only what is
new when something has changed. Several processes, ranks of one job or not, share the work.
"""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from cosmos_hydra.config import Config, Fit
from cosmos_hydra.data.captions import encode_captions
from cosmos_hydra.data.clips import TRAIN, Clip
from cosmos_hydra.data.inventory import Inventory
from cosmos_hydra.data.keys import clip_part
from cosmos_hydra.data.layout import Layout
from cosmos_hydra.data.ledger import Ledger, Shares
from cosmos_hydra.data.manifest import complete
from cosmos_hydra.data.plan import Work
from cosmos_hydra.data.planner import Planner
from cosmos_hydra.data.store import SampleStore, open_store
from cosmos_hydra.data.video import UnreadableVideo, decode, fit_frames, to_signed
from cosmos_hydra.data.writer import SampleWriter, Texts
from cosmos_hydra.engines.torch.team import Team
from cosmos_hydra.errors import StageError
from cosmos_hydra.logs import progress
from cosmos_hydra.models.tokenizer import load_tokenizer
from cosmos_hydra.models.toy_tokenizer import ToyTokenizer
from cosmos_hydra.seeds import numpy_generator

logger = logging.getLogger(__name__)


def prepare(
    config: Config,
    device: torch.device,
    begin: Callable[[], None] = lambda: None,
    team: Team | None = None,
) -> SampleStore:
    """Return the samples of the configured source, making those that are missing.

    `begin` is called when nothing is left that would be refused. Every rank of the team calls
    this: rank 0 plans, and all make what no other process is making.

    Raises: ConfigError when encoder weights are missing; StageError when no sample can be made,
    when data.path holds something else, or when other processes fill it with other samples.
    """
    layout = Layout(Path(config.data.path).expanduser(), config.data.format)
    team = team or Team()
    planner = Planner(config, layout, device, begin, _fit_tokenizer)
    with closing(Ledger(layout.lock)) as ledger:
        work = team.decide(lambda: planner.plan(ledger))
        if work is not None:
            if not team.is_first:
                ledger.join(work.num_groups)
            if team.size > 1:
                logger.info(f"{team.size} ranks share them; shown is what rank 0 does")
            _make(config, layout, work, device, ledger)
            last = Shares(ledger, work.num_groups - 1, [[work]], lambda _: False)
            team.decide(lambda: last.work(lambda one: complete(config, layout, next(one), ledger)))
        return open_store(config.data.path)


def _make(config: Config, layout: Layout, work: Work, device: torch.device, ledger: Ledger) -> None:
    texts = Texts(layout, work.text_encoder)
    encode_captions(config, work, texts, device, ledger)
    made = _encode_clips(config, layout, work, texts, device, ledger)
    logger.info(f"made {made} of {len(work.missing)} samples")
    gc.collect()


def _encode_clips(
    config: Config, layout: Layout, work: Work, texts: Texts, device: torch.device, ledger: Ledger
) -> int:
    """Make the samples that no other process makes; return how many when all are made."""
    writer = SampleWriter(layout)
    failed = ledger.reported()
    num_made = 0

    def is_made(clip: Clip) -> bool:
        return clip.video in failed or layout.info(work.ids[clip]).is_file()

    def count() -> None:
        nonlocal num_made
        num_made += 1
        bar.advance()

    def without_latent(clips: Iterator[Clip]) -> Iterator[Clip]:
        """Yield the clips that must be encoded; make those whose latent another sample has."""
        for clip in clips:
            if clip.video in failed:
                continue
            sample_id, text = work.ids[clip], texts.path(work.caption(clip))
            other_id = work.latents.get(clip_part(sample_id))
            info = _info(config, work.inventory, clip)
            if other_id and writer.adopt(other_id, sample_id, info, text):
                count()
            else:
                yield clip

    def encode(clips: Iterator[Clip]) -> None:
        tokenizer = None
        for clip in without_latent(clips):
            try:
                video_CFHW, content = read_clip(config, work.inventory, clip)
            except UnreadableVideo as error:
                failed[clip.video] = str(error)
                ledger.report(clip.video, str(error))
                continue
            tokenizer = tokenizer or load_tokenizer(config.model, work.fitted(layout), device)
            latent_CFHW = tokenizer.encode(to_signed(video_CFHW)[None])[0]
            info = _info(config, work.inventory, clip, content)
            writer.write(work.ids[clip], info, latent_CFHW, texts.path(work.caption(clip)))
            count()

    done = len(work.ids) - len(work.missing)
    with progress("encode clips", len(work.ids), "clips", start=done) as bar:
        Shares(ledger, len(work.caption_groups), work.clip_groups, is_made).work(encode)
    return num_made


def read_clip(config: Config, inventory: Inventory, clip: Clip) -> tuple[torch.Tensor, dict]:
    """Return a clip's pixels uint8 [3, F, H, W] and where in them the picture lies."""
    frames_FHWC = decode(inventory.episodes[clip.video].video, list(clip.frame_indices))
    data = config.data
    video_CFHW, box = fit_frames(frames_FHWC, data.height, data.width, data.fit)
    return video_CFHW, vars(box)


def _fit_tokenizer(config: Config, inventory: Inventory, path: Path) -> None:
    clips = [clip for clip in inventory.clips if clip.split == TRAIN]
    limit = config.data.tokenizer_clips
    if len(clips) > limit:
        generator = numpy_generator(config.data.seed, "tokenizer")
        chosen = generator.choice(len(clips), limit, replace=False)
        clips = [clips[index] for index in sorted(chosen)]
    fitted = ToyTokenizer.fit(_pixels(config, inventory, clips), config.data.seed)
    if not fitted.tensors:
        raise StageError(
            f"data.source={config.data.source} has no training clip that can be decoded; "
            f"replace the damaged videos"
        )
    fitted.save(path)


def _pixels(config: Config, inventory: Inventory, clips: list[Clip]) -> Iterator[torch.Tensor]:
    with progress("fit tokenizer", len(clips), "clips") as bar:
        for clip in clips:
            try:
                video_CFHW, _ = read_clip(config, inventory, clip)
            except UnreadableVideo:
                continue  # reported when its samples are made
            yield to_signed(video_CFHW)
            bar.advance()


def _info(
    config: Config, inventory: Inventory, clip: Clip, content: dict | None = None
) -> dict[str, Any]:
    """Return info.json: height, width and fps are those of the latent's clip."""
    source = inventory.infos[clip.video]
    data = config.data
    return {
        "height": data.height,
        "width": data.width,
        "fps": clip.fps,
        "num_frames": data.frames,
        "video_path": clip.video,
        "start_frame": clip.start_frame,
        "content": content if data.fit is Fit.pad else None,
        "source": {
            "height": source.height,
            "width": source.width,
            "fps": source.fps,
            "num_frames": source.num_frames,
        },
    }
