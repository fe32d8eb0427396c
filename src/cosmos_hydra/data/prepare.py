"""Turn videos into samples: fit or load the tokenizer, encode captions once each, encode clips.

The same command goes on where it stopped, does nothing when all is done, and makes only what is
new when something has changed. Several processes, ranks of one job or not, share the work.
"""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from cosmos_hydra.config import Config, Fit, TokenizerKind
from cosmos_hydra.data.ahead import Decoded, decode_together
from cosmos_hydra.data.captions import encode_captions
from cosmos_hydra.data.clips import TRAIN, Clip
from cosmos_hydra.data.encode import encode_clips
from cosmos_hydra.data.inventory import Inventory
from cosmos_hydra.data.keys import clip_part
from cosmos_hydra.data.layout import Layout
from cosmos_hydra.data.ledger import Ledger, Shares
from cosmos_hydra.data.manifest import complete
from cosmos_hydra.data.plan import Work
from cosmos_hydra.data.planner import Planner
from cosmos_hydra.data.preview import write_previews
from cosmos_hydra.data.store import SampleStore, open_store
from cosmos_hydra.data.video import ContentBox, UnreadableVideo, decode, fit_frames, to_signed
from cosmos_hydra.data.writer import SampleWriter, Texts
from cosmos_hydra.engines.torch.compiling import has_compiler
from cosmos_hydra.engines.torch.team import Team
from cosmos_hydra.errors import StageError
from cosmos_hydra.logs import progress
from cosmos_hydra.models.fast_autoencoder import COMPILED, EAGER, Way
from cosmos_hydra.models.tokenizer import Tokenizer, load_tokenizer
from cosmos_hydra.models.toy_tokenizer import ToyTokenizer
from cosmos_hydra.seeds import numpy_generator

DECODED_TOGETHER_BYTES = 3 << 28  # of one video, by each of the decoding threads
WORTH_COMPILING = 100  # clips; 21 s, then 0.1 s instead of 0.3 s a clip (H200, 121x704x1280)
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
            _make(config, layout, work, device, ledger, team.size)
            last = Shares(ledger, work.num_groups - 1, [[work]], lambda _: False)
            team.decide(lambda: last.work(lambda one: complete(config, layout, next(one), ledger)))
        store = open_store(config.data.path)
        if config.preprocess.preview:
            team.decide(lambda: _show(config, layout, work or planner.work(), store, device))
        return store


def _make(
    config: Config,
    layout: Layout,
    work: Work,
    device: torch.device,
    ledger: Ledger,
    num_ranks: int,
) -> None:
    texts = Texts(layout, work.text_encoder)
    encode_captions(config, work, texts, device, ledger)
    ways = _ways(config, len(work.missing) // num_ranks, device)
    made = _encode_clips(config, layout, work, texts, device, ledger, ways)
    logger.info(f"made {made} of {len(work.missing)} samples")
    gc.collect()


def _ways(config: Config, clips: int, device: torch.device) -> frozenset[Way]:
    """Return how the tokenizer is made faster; unasked, it is compiled where that pays."""
    is_compiled = config.preprocess.compile
    if device.type != "cuda":
        if is_compiled:
            logger.warning("preprocess.compile=true has no effect on a CPU")
        return EAGER
    if is_compiled is None:
        is_compiled = clips >= WORTH_COMPILING and has_compiler()
    if is_compiled and config.model.tokenizer.kind is TokenizerKind.cosmos:
        logger.info("the tokenizer is compiled for this clip size (preprocess.compile=false: not)")
    return COMPILED if is_compiled else EAGER


def _encode_clips(
    config: Config,
    layout: Layout,
    work: Work,
    texts: Texts,
    device: torch.device,
    ledger: Ledger,
    ways: frozenset[Way],
) -> int:
    """Make the samples that no other process makes; return how many when all are made."""
    writer = SampleWriter(layout)
    failed = ledger.reported()
    num_made = 0

    @cache
    def tokenizer() -> Tokenizer:
        return load_tokenizer(config.model, work.fitted(layout), device, ways)

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
            motion = work.inventory.motion(clip)
            if other_id and writer.adopt(other_id, sample_id, info, text, motion):
                count()
            else:
                yield clip

    def write(clip: Clip, box: ContentBox, latent_CFHW: torch.Tensor) -> None:
        info = _info(config, work.inventory, clip, vars(box))
        text, motion = texts.path(work.caption(clip)), work.inventory.motion(clip)
        writer.write(work.ids[clip], info, latent_CFHW, text, motion)

    def encode(clips: Iterator[Clip]) -> None:
        clips = without_latent(clips)
        for first in clips:
            wanted = chain([first], clips)
            with (
                _decoded(work.inventory, wanted, device) as decoded,
                closing(encode_clips(decoded, tokenizer(), config.data, device, write)) as encoded,
            ):
                for clip, error in encoded:
                    if error is None:
                        count()
                    else:
                        failed[clip.video] = str(error)
                        ledger.report(clip.video, str(error))

    done = len(work.ids) - len(work.missing)
    with progress("encode clips", len(work.ids), "clips", start=done) as bar:
        Shares(ledger, len(work.caption_groups), work.clip_groups, is_made).work(encode)
    return num_made


@contextmanager
def _decoded(
    inventory: Inventory, clips: Iterator[Clip], device: torch.device
) -> Iterator[Iterator[Decoded]]:
    """Yield clips with their frames, decoded ahead where a GPU would have to wait for them."""

    def read(video: str, indices: list[int]) -> torch.Tensor | UnreadableVideo:
        try:
            return decode(inventory.episodes[video].video, indices)
        except UnreadableVideo as error:
            return error

    def most_frames(video: str) -> int:
        info = inventory.infos[video]
        return DECODED_TOGETHER_BYTES // (3 * info.height * info.width)

    def read_one(clip: Clip) -> torch.Tensor | UnreadableVideo:
        try:
            return read_clip(inventory, clip)
        except UnreadableVideo as error:
            return error

    if device.type != "cuda":
        yield ((clip, read_one(clip)) for clip in clips)
        return
    workers = max(1, len(os.sched_getaffinity(0)) // 2)
    with ThreadPoolExecutor(workers) as executor:
        yield decode_together(clips, read, most_frames, executor, workers)


def _show(
    config: Config, layout: Layout, work: Work, store: SampleStore, device: torch.device
) -> None:
    clips = {work.ids[clip]: clip for clip in work.inventory.clips}
    tokenizer = load_tokenizer(config.model, work.fitted(layout), device)
    count = config.preprocess.preview_clips
    write_previews(store, clips, partial(read_clip, work.inventory), tokenizer, config.data, count)


def read_clip(inventory: Inventory, clip: Clip) -> torch.Tensor:
    """Return a clip's frames as recorded, uint8 [F, H, W, 3].

    Raises: UnreadableVideo.
    """
    return decode(inventory.episodes[clip.video].video, list(clip.frame_indices))


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
    data = config.data
    with progress("fit tokenizer", len(clips), "clips") as bar:
        for clip in clips:
            try:
                frames_FHWC = read_clip(inventory, clip)
            except UnreadableVideo:
                continue  # reported when its samples are made
            size = (data.height, data.width, data.fit, clip.pixel_aspect)
            yield to_signed(fit_frames(frames_FHWC, *size)[0])
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
