"""Decoded clips to latents, every stage beside the others.

On a GPU a thread copies frames into pinned memory and on to the device while the clip before is
encoded, and threads write while the next is. On a CPU all is done in turn, since there is nothing
to overlap but what decodes ahead.
Legend: C channels, F frames (pixel or latent), H W height/width (pixel or latent).
"""

import time
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar

import torch

from cosmos_hydra.config import DataConfig
from cosmos_hydra.data.clips import Clip
from cosmos_hydra.data.video import ContentBox, UnreadableVideo, fit_frames, to_signed
from cosmos_hydra.models.tokenizer import Tokenizer

FRAMES_AHEAD = 2  # clips whose frames lie on the device
WRITERS = 4  # threads; most of their time goes into waiting for the disk
UNWRITTEN = 8  # clips that may wait for a writer

# frames uint8 [F, H, W, 3], or why there are none
Decoded = tuple[Clip, torch.Tensor | UnreadableVideo]
Encoded = Generator[tuple[Clip, UnreadableVideo | None], None, None]
# takes a clip, where in it the picture lies, and the latent [C, F, H, W] on the CPU
Write = Callable[[Clip, ContentBox, torch.Tensor], None]

In = TypeVar("In")
Out = TypeVar("Out")


class Spent:
    """Seconds spent in each stage, of all threads together; those of the GPU by its own clock."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock = Lock()

    def add(self, stage: str, seconds: float) -> None:
        """Count some more; from any thread."""
        with self._lock:
            self.seconds[stage] += seconds

    @contextmanager
    def on(self, stage: str) -> Iterator[None]:
        """Count what the block takes."""
        began_s = time.perf_counter()
        yield
        self.add(stage, time.perf_counter() - began_s)


def read_ahead(
    items: Iterable[In], read: Callable[[In], Out], executor: Executor, ahead: int
) -> Iterator[tuple[In, Out]]:
    """Yield items with what `read` makes of them, in order, `ahead` of them under way."""
    pending: deque[tuple[In, Future[Out]]] = deque()
    try:
        for item in items:
            pending.append((item, executor.submit(read, item)))
            if len(pending) > ahead:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    finally:
        for _, future in pending:
            future.cancel()


def decode_together(
    clips: Iterable[Clip],
    read: Callable[[str, list[int]], torch.Tensor | UnreadableVideo],
    most_frames: Callable[[str], int],
    executor: Executor,
    ahead: int,
) -> Iterator[Decoded]:
    """Yield clips with their frames, which neighbours that overlap share.

    `read` returns the frames of a video, and `most_frames` how many of them fit into memory; of
    such readings `ahead` are under way.
    """

    def read_group(group: list[Clip]) -> tuple[list[int], torch.Tensor | UnreadableVideo]:
        indices = sorted({index for clip in group for index in clip.frame_indices})
        return indices, read(group[0].video, indices)

    groups = _overlapping(clips, most_frames)
    for group, (indices, frames_FHWC) in read_ahead(groups, read_group, executor, ahead):
        for clip in group:
            if isinstance(frames_FHWC, UnreadableVideo):
                yield clip, frames_FHWC
                continue
            places = [bisect_left(indices, index) for index in clip.frame_indices]
            if places == list(range(places[0], places[0] + len(places))):
                yield clip, frames_FHWC[places[0] : places[0] + len(places)]  # no copy
            else:
                yield clip, frames_FHWC[places]


def _overlapping(clips: Iterable[Clip], most_frames: Callable[[str], int]) -> Iterator[list[Clip]]:
    """Yield neighbours of one video, each of which shares frames with those before it."""
    group: list[Clip] = []
    frames: set[int] = set()
    for clip in clips:
        wanted = frames.union(clip.frame_indices)
        is_one_of_them = (
            group
            and clip.video == group[0].video
            and not frames.isdisjoint(clip.frame_indices)
            and len(wanted) <= most_frames(clip.video)
        )
        if group and not is_one_of_them:
            yield group
            group, wanted = [], set(clip.frame_indices)
        group.append(clip)
        frames = wanted
    if group:
        yield group


def encode_clips(
    decoded: Iterable[Decoded],
    tokenizer: Tokenizer,
    data: DataConfig,
    device: torch.device,
    write: Write,
    spent: Spent | None = None,
) -> Encoded:
    """Encode and write clips; yield each when it is on its way to disk, or why it cannot be made.

    With the last one yielded all are written. On a GPU `decoded` is iterated in a thread, and
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
    for clip, frames_FHWC in _timed(decoded, spent):
        if isinstance(frames_FHWC, UnreadableVideo):
            yield clip, frames_FHWC
            continue
        with spent.on("resize"):
            video_CFHW, box = fit_frames(frames_FHWC, data.height, data.width, data.fit)
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
        uploader = stack.enter_context(_Uploader(decoded, device, spent))
        writers = stack.enter_context(ThreadPoolExecutor(WRITERS))
        for clip, slot in _timed(uploader, spent, "wait for frames"):
            if isinstance(slot, UnreadableVideo):
                yield clip, slot
                continue
            clock = _Clock()
            with slot.used():
                video_CFHW, box = fit_frames(slot.frames, data.height, data.width, data.fit)
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


def _write(
    write: Write,
    clip: Clip,
    box: ContentBox,
    latent_CFHW: torch.Tensor,
    clock: "_Clock",
    spent: Spent,
) -> None:
    for stage, seconds in clock.read():
        spent.add(stage, seconds)
    with spent.on("write"):
        write(clip, box, latent_CFHW)


def _timed(items: Iterable[Out], spent: Spent, stage: str = "decode") -> Iterator[Out]:
    iterator = iter(items)
    while True:
        with spent.on(stage):
            item = next(iterator, None)
        if item is None:
            return
        yield item


class _Clock:
    """When the device gets where it is told to mark the time."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, torch.cuda.Event]] = []
        self.mark("")

    def mark(self, stage: str) -> None:
        """Note the end of a stage."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append((stage, event))

    def read(self) -> Iterator[tuple[str, float]]:
        """Yield stages and their seconds; blocks until the last has ended."""
        self.marks[-1][1].synchronize()
        for (_, before), (stage, event) in zip(self.marks, self.marks[1:], strict=False):
            yield stage, before.elapsed_time(event) / 1000


class _Slot:
    """Room for one clip's frames, pinned on the host and on the device."""

    def __init__(self, device: torch.device, stream: torch.cuda.Stream) -> None:
        self.device, self.stream = device, stream
        self.host = self.there = self.frames = torch.empty(0, dtype=torch.uint8)
        self.copied, self.free = torch.cuda.Event(), torch.cuda.Event()

    def fill(self, frames_FHWC: torch.Tensor, spent: Spent) -> None:
        """Begin to copy frames to the device."""
        size_bytes = frames_FHWC.numel()
        self.copied.synchronize()
        if self.host.numel() < size_bytes:
            self.host = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
            self.there = torch.empty(size_bytes, dtype=torch.uint8, device=self.device)
        with spent.on("copy to pinned memory"):
            self.host[:size_bytes].view(frames_FHWC.shape).copy_(frames_FHWC)
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(self.free)
            self.there[:size_bytes].copy_(self.host[:size_bytes], non_blocking=True)
            self.copied.record()
        self.frames = self.there[:size_bytes].view(frames_FHWC.shape)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let what the current stream is given in the block have the frames."""
        torch.cuda.current_stream(self.device).wait_event(self.copied)
        yield
        self.free.record(torch.cuda.current_stream(self.device))


class _Uploader:
    """Iterate clips with their frames on the device; a thread copies those to come.

    A slot is filled again when the next item is asked for.
    """

    def __init__(self, decoded: Iterable[Decoded], device: torch.device, spent: Spent) -> None:
        self.decoded, self.spent = decoded, spent
        self.empty: SimpleQueue[_Slot | None] = SimpleQueue()
        self.full: SimpleQueue[Any] = SimpleQueue()
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            for _ in range(FRAMES_AHEAD):
                self.empty.put(_Slot(device, stream))
        self.device, self.is_stopped = device, False
        self.thread = Thread(target=self._feed, name="upload", daemon=True)

    def __enter__(self) -> "_Uploader":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.is_stopped = True
        self.empty.put(None)
        self.thread.join()

    def __iter__(self) -> Iterator[tuple[Clip, Any]]:
        while (item := self.full.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
            if isinstance(item[1], _Slot):
                self.empty.put(item[1])

    def _feed(self) -> None:
        try:
            with torch.cuda.device(self.device):
                for clip, frames in _timed(self.decoded, self.spent, "wait for decoders"):
                    if self.is_stopped:
                        return
                    if isinstance(frames, UnreadableVideo):
                        self.full.put((clip, frames))
                        continue
                    with self.spent.on("wait for a free slot"):
                        slot = self.empty.get()
                    if slot is None or self.is_stopped:
                        return
                    slot.fill(frames, self.spent)
                    self.full.put((clip, slot))
            self.full.put(None)
        except BaseException as error:  # noqa: BLE001 (raised again where it is read)
            self.full.put(error)
