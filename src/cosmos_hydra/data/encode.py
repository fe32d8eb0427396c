"""Decoded clips to latents, every stage beside the others.

On a GPU a thread copies frames into pinned memory and on to the device while the clip before is
encoded, and threads write while the next is. On a CPU all is done in turn, since there is nothing
to overlap but what decodes ahead.
Legend: C channels, F frames (pixel or latent), H W height/width (pixel or latent).
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import torch

from cosmos_hydra.config import DataConfig
from cosmos_hydra.data.ahead import Decoded
from cosmos_hydra.data.clips import Clip
from cosmos_hydra.data.spent import Clock, Spent, timed
from cosmos_hydra.data.upload import Uploader
from cosmos_hydra.data.video import ContentBox, UnreadableVideo, fit_frames, to_signed
from cosmos_hydra.models.tokenizer import Tokenizer

WRITERS = 4  # threads; most of their time goes into waiting for the disk
UNWRITTEN = 8  # clips that may wait for a writer

Encoded = Generator[tuple[Clip, UnreadableVideo | None], None, None]
# takes a clip, where in it the picture lies, and the latent [C, F, H, W] on the CPU
Write = Callable[[Clip, ContentBox, torch.Tensor], None]


def encode_clips(
    decoded: Iterable[Decoded],
    tokenizer: Tokenizer,
    data: DataConfig,
    device: torch.device,
    write: Write,
    spent: Spent | None = None,
) -> Encoded:
    """Encode and write clips; yield each when it is on its way to disk, or why it cannot be made.

    When it ends all are written. On a GPU `decoded` is iterated in a thread, and
    `write` called in several at once.

    Raises: what `decoded` and `write` raise.
    """
    spent = spent or Spent()
    stages = _on_cuda if device.type == "cuda" else _in_turn
    return stages(decoded, tokenizer, data, device, write, spent)


def _in_turn(
    decoded: Iterable[Decoded],
    tokenizer: Tokenizer,
    data: DataConfig,
    device: torch.device,
    write: Write,
    spent: Spent,
) -> Encoded:
    for clip, frames_FHWC in timed(decoded, spent):
        if isinstance(frames_FHWC, UnreadableVideo):
            yield clip, frames_FHWC
            continue
        with spent.on("resize"):
            video_CFHW, box = _fit(frames_FHWC, clip, data)
        with spent.on("encode"):
            latent_CFHW = tokenizer.encode(to_signed(video_CFHW)[None])[0]
        with spent.on("write"):
            write(clip, box, latent_CFHW)
        yield clip, None


def _on_cuda(
    decoded: Iterable[Decoded],
    tokenizer: Tokenizer,
    data: DataConfig,
    device: torch.device,
    write: Write,
    spent: Spent,
) -> Encoded:
    pending: deque[Future[None]] = deque()
    with ExitStack() as stack:
        stack.enter_context(torch.cuda.device(device))
        uploader = stack.enter_context(Uploader(decoded, device, spent))
        writers = stack.enter_context(ThreadPoolExecutor(WRITERS))
        for clip, slot in timed(uploader, spent, "wait for frames"):
            if isinstance(slot, UnreadableVideo):
                yield clip, slot
                continue
            clock = Clock()
            with slot.used():
                video_CFHW, box = _fit(slot.frames, clip, data)
            clock.mark("resize")
            latent_CFHW = tokenizer.encode(video_CFHW[None])[0].to(torch.bfloat16)
            clock.mark("encode")
            # pinned by torch, and there when the clock says so
            latent_CFHW = latent_CFHW.to("cpu", non_blocking=True)
            clock.mark("copy back")
            pending.append(writers.submit(_write, write, clip, box, latent_CFHW, clock, spent))
            if len(pending) > UNWRITTEN:
                with spent.on("wait for disk or GPU"):
                    pending.popleft().result()
            yield clip, None
        with spent.on("finish"):
            while pending:
                pending.popleft().result()


def _fit(
    frames_FHWC: torch.Tensor, clip: Clip, data: DataConfig
) -> tuple[torch.Tensor, ContentBox]:
    return fit_frames(frames_FHWC, data.height, data.width, data.fit, clip.pixel_aspect)


def _write(
    write: Write,
    clip: Clip,
    box: ContentBox,
    latent_CFHW: torch.Tensor,
    clock: Clock,
    spent: Spent,
) -> None:
    for stage, seconds in clock.read():
        spent.add(stage, seconds)
    with spent.on("write"):
        write(clip, box, latent_CFHW)
