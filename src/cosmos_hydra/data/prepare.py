"""Turn videos into samples: fit or load the tokenizer, encode captions once each, encode clips.

The same command goes on where it stopped and does nothing when all is done. `plan.json` records
the settings before the first sample, `manifest.json` after the last.
"""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from cosmos_hydra import config as schema
from cosmos_hydra import files
from cosmos_hydra.changes import difference
from cosmos_hydra.claim import claim
from cosmos_hydra.config import Config, TokenizerKind
from cosmos_hydra.data.clips import TRAIN, Clip
from cosmos_hydra.data.encode import Decoded, encode_clips, read_ahead
from cosmos_hydra.data.inventory import (
    IDENTITY,
    Inventory,
    messages,
    settings,
    take_inventory,
)
from cosmos_hydra.data.preview import write_previews
from cosmos_hydra.data.store import FORMAT_VERSION, Layout, SampleStore, open_store
from cosmos_hydra.data.video import (
    ContentBox,
    UnreadableVideo,
    decode,
    fit_frames,
    to_signed,
)
from cosmos_hydra.data.writer import SampleWriter
from cosmos_hydra.engines.torch.team import Team
from cosmos_hydra.errors import StageError
from cosmos_hydra.logs import progress
from cosmos_hydra.models.text import TextEmbedding, load_text_encoder
from cosmos_hydra.models.tokenizer import Tokenizer, load_tokenizer
from cosmos_hydra.models.toy_tokenizer import ToyTokenizer
from cosmos_hydra.reading import read_json
from cosmos_hydra.seeds import numpy_generator

logger = logging.getLogger(__name__)


@dataclass
class Work:
    """What is to be made, as rank 0 has found it."""

    plan: dict[str, Any]
    inventory: Inventory
    is_done: bool

    @cached_property
    def ids(self) -> dict[Clip, str]:
        """Return the name of each clip's sample."""
        return {clip: str(number) for number, clip in enumerate(self.inventory.clips)}


def prepare(
    config: Config,
    device: torch.device,
    begin: Callable[[], None] = lambda: None,
    team: Team | None = None,
) -> SampleStore:
    """Return the samples of the configured source, making those that are missing.

    `begin` is called when nothing is left that would be refused. Every rank of the team calls
    this: rank 0 plans, and each makes its share of the clips.

    Raises: ConfigError when encoder weights are missing; StageError when no sample can be made,
    when data.path holds other samples, or when another process writes there.
    """
    layout = Layout(Path(config.data.path).expanduser(), config.data.format)
    team = team or Team()
    with ExitStack() as stack:
        work = team.decide(lambda: _plan(config, layout, device, begin, stack))
        if not work.is_done:
            _make(config, layout, work, device, team)
        store = open_store(config.data.path)
        if config.preprocess.preview:
            team.decide(lambda: _show(config, layout, work, store, device))
        return store


def _plan(
    config: Config,
    layout: Layout,
    device: torch.device,
    begin: Callable[[], None],
    stack: ExitStack,
) -> Work:
    """Claim the folder and return what is to be made in it."""
    stack.enter_context(claim(layout.lock, f"data.path={layout.folder}"))
    # the NeMo reader would take them for samples
    files.remove_leftovers(layout.folder, layout.folder / "text")
    files.remove_leftovers(layout.folder.parent, prefix=f".{layout.folder.name}.")
    wanted = settings(config)
    inventory = take_inventory(config)
    for line in messages(config, inventory):
        logger.info(line)
    videos = {name: inventory.identity(name) for name in inventory.episodes}
    plan = {"settings": wanted, "videos": videos}
    is_done = _is_done(layout, plan)
    begin()
    if is_done:
        logger.info(f"samples in {layout.folder} are up to date")
        return Work(plan, inventory, is_done)
    model = config.model
    logger.info(
        f"encoding with the {model.tokenizer.kind} tokenizer and the {model.text_encoder.kind} "
        f"text encoder on {device}, into {layout.folder}"
    )
    files.write_json(layout.beside("plan.json"), plan)
    return Work(plan, inventory, is_done)


def _show(
    config: Config, layout: Layout, work: Work, store: SampleStore, device: torch.device
) -> None:
    clips = {work.ids[clip]: clip for clip in work.inventory.clips}
    tokenizer = load_tokenizer(config.model, layout.tokenizer, device)
    count = config.preprocess.preview_clips
    read = partial(read_clip, work.inventory)
    write_previews(store, clips, read, tokenizer, config.data, count)


def _make(config: Config, layout: Layout, work: Work, device: torch.device, team: Team) -> None:
    team.decide(lambda: _fit_tokenizer(config, work.inventory, layout))
    tokenizer = load_tokenizer(config.model, layout.tokenizer, device)
    texts, text_identity = team.decide(lambda: _encode_captions(config, work.inventory, device))
    failed = _encode_clips(config, work, layout, tokenizer, texts, device, team)
    found = {video: reason for part in team.gather(failed) for video, reason in part.items()}
    identities = (tokenizer.identity, text_identity)
    team.decide(lambda: _complete(config, layout, work, found, *identities))
    del tokenizer, texts
    gc.collect()


def _complete(
    config: Config,
    layout: Layout,
    work: Work,
    failed: dict[str, str],
    tokenizer: Any,
    text_encoder: Any,
) -> None:
    """Write the manifest, without the videos that failed."""
    inventory, ids = work.inventory, work.ids
    for video in sorted(failed):
        _forget(inventory, layout, video, failed[video], ids)
    if not inventory.clips:
        raise StageError(f"data.source={config.data.source} gives no sample: {inventory.summary()}")
    if failed:
        logger.info(inventory.summary())
    manifest = {
        "format_version": FORMAT_VERSION,
        "settings": work.plan["settings"],
        "config": schema.to_dict(config),
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        **inventory.describe(),
        "samples": [
            {
                "id": ids[clip],
                "split": clip.split,
                "video": clip.video,
                "start_frame": clip.start_frame,
                "fps": clip.fps,
                "caption": inventory.episodes[clip.video].caption,
            }
            for clip in inventory.clips
        ],
    }
    identity = ("settings", "videos", "samples", "tokenizer", "text_encoder")
    manifest["content_hash"] = files.sha256_of_json({key: manifest[key] for key in identity})
    files.write_json(layout.manifest, manifest)
    layout.beside("plan.json").unlink(missing_ok=True)


def _is_done(layout: Layout, plan: dict[str, Any]) -> bool:
    """Return whether the folder is complete; refuse one that was made with other settings."""
    for path, is_complete in ((layout.manifest, True), (layout.beside("plan.json"), False)):
        if not path.is_file():
            continue
        try:
            old = read_json(path)
            changes = difference(old["settings"], plan["settings"])
            changes += _changed_videos(old, plan)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StageError(
                f"{path} is damaged; remove {layout.folder} and preprocess again"
            ) from error
        if changes:
            shown = ", ".join(changes[:4]) + (", ..." if len(changes) > 4 else "")
            raise StageError(
                f"data.path={layout.folder} holds samples made otherwise ({shown}); "
                f"choose another data.path or remove the folder"
            )
        return is_complete
    if layout.folder.is_dir() and any(path != layout.lock for path in layout.folder.iterdir()):
        raise StageError(
            f"data.path={layout.folder} is not empty and not ours; choose another data.path"
        )
    return False


def _changed_videos(old: dict[str, Any], plan: dict[str, Any]) -> list[str]:
    """Return a text for every video that is new, gone, or another in what its samples hold."""
    before = {name: [video.get(k) for k in IDENTITY] for name, video in old["videos"].items()}
    # a video that failed while it was encoded is not in the manifest
    failed = old.get("failed", {})
    now = {
        name: [video.get(k) for k in IDENTITY]
        for name, video in plan["videos"].items()
        if name not in failed
    }
    names = sorted(before.keys() | now.keys())
    return [f"video {name}" for name in names if before.get(name) != now.get(name)]


def read_clip(inventory: Inventory, clip: Clip) -> torch.Tensor:
    """Return a clip's frames as recorded, uint8 [F, H, W, 3].

    Raises: UnreadableVideo.
    """
    return decode(inventory.episodes[clip.video].video, list(clip.frame_indices))


def _fit_tokenizer(config: Config, inventory: Inventory, layout: Layout) -> None:
    if config.model.tokenizer.kind is TokenizerKind.toy and not layout.tokenizer.is_file():
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
        fitted.save(layout.tokenizer)


def _pixels(config: Config, inventory: Inventory, clips: list[Clip]) -> Iterator[torch.Tensor]:
    data = config.data
    with progress("fit tokenizer", len(clips), "clips") as bar:
        for clip in clips:
            try:
                frames_FHWC = read_clip(inventory, clip)
            except UnreadableVideo:
                continue  # reported when its samples are made
            yield to_signed(fit_frames(frames_FHWC, data.height, data.width, data.fit)[0])
            bar.advance()


def _encode_captions(
    config: Config, inventory: Inventory, device: torch.device
) -> tuple[dict[str, TextEmbedding], dict[str, Any]]:
    """Encode every distinct caption once; the encoder is gone when this returns."""
    captions = sorted({episode.caption for episode in inventory.episodes.values()})
    encoder = load_text_encoder(config.model, device)
    texts = {}
    with progress("encode text", len(captions), "captions") as bar:
        for caption, text in encoder.encode_all(captions):
            texts[caption] = text
            if text.mask_T.all():
                logger.warning(
                    f"caption fills all {config.model.text_tokens} tokens and may be cut: "
                    f"{caption[:60]}..."
                )
            bar.advance()
    identity = encoder.identity
    del encoder
    gc.collect()
    return texts, identity


def _encode_clips(
    config: Config,
    work: Work,
    layout: Layout,
    tokenizer: Tokenizer,
    texts: dict[str, TextEmbedding],
    device: torch.device,
    team: Team,
) -> dict[str, str]:
    """Make this rank's samples and return the videos that could not be decoded, with reasons."""
    writer = SampleWriter(layout)
    inventory, ids = work.inventory, work.ids
    missing = team.decide(lambda: [c for c in inventory.clips if not layout.info(ids[c]).is_file()])
    clips = team.share(missing)
    done = len(ids) - len(missing)
    if done:
        logger.info(f"going on: {done} of {len(ids)} samples are there")
    if team.size > 1:
        logger.info(f"{team.size} ranks share them; shown is what rank 0 does")
        done = 0
    failed: dict[str, str] = {}

    def write(clip: Clip, box: ContentBox, latent_CFHW: torch.Tensor) -> None:
        text = texts[inventory.episodes[clip.video].caption]
        info, motion = _info(config, inventory, clip, vars(box)), inventory.motion(clip)
        writer.write(ids[clip], info, latent_CFHW, text, motion)

    wanted = (clip for clip in clips if clip.video not in failed)
    with (
        _decoded(inventory, wanted, device) as decoded,
        progress("encode clips", done + len(clips), "clips", start=done) as bar,
        closing(encode_clips(decoded, tokenizer, config.data, device, write)) as encoded,
    ):
        for clip, error in encoded:
            if error is None:
                bar.advance()
            else:
                failed[clip.video] = str(error)
    return failed


@contextmanager
def _decoded(
    inventory: Inventory, clips: Iterator[Clip], device: torch.device
) -> Iterator[Iterator[Decoded]]:
    """Yield clips with their frames, decoded ahead where a GPU would have to wait for them."""

    def read(clip: Clip) -> torch.Tensor | UnreadableVideo:
        try:
            return read_clip(inventory, clip)
        except UnreadableVideo as error:
            return error

    if device.type != "cuda":
        yield ((clip, read(clip)) for clip in clips)
        return
    workers = max(1, len(os.sched_getaffinity(0)) // 2)
    with ThreadPoolExecutor(workers) as executor:
        yield read_ahead(clips, read, executor, workers)


def _forget(
    inventory: Inventory, layout: Layout, video: str, reason: str, ids: dict[Clip, str]
) -> None:
    logger.warning(f"{video}: {reason}; its clips are left out")
    for clip in inventory.clips:
        if clip.video == video:
            for file in layout.folder.glob(f"{ids[clip]}.*"):
                file.unlink()
    inventory.drop(video, reason)


def _info(config: Config, inventory: Inventory, clip: Clip, content: dict) -> dict[str, Any]:
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
        "content": content if data.fit is schema.Fit.pad else None,
        "source": {
            "height": source.height,
            "width": source.width,
            "fps": source.fps,
            "num_frames": source.num_frames,
        },
    }
