"""Read frames of one file by number, exactly; runs in decoder processes, imports no torch.

The numbers count the frames shown, in the order shown. All packets are looked at first, without
decoding, so that every frame is known by its presentation time stamp (pts) and every key frame by
what it shows: after a jump, frames count only from the key frame landed on, which holds for open
groups of pictures, edit lists and negative times too. PyAV rather than decord, which numbers key
frames in decoding order, cannot be kept from opening other files, and took five times as long.
"""

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import av
import numpy as np

from cosmos_hydra.data.decode_open import DAMAGED, NO_VIDEO, Unreadable, open_video
from cosmos_hydra.data.decode_picture import Converter

CACHE_BYTES = 256 << 20  # decoded frames kept for the next, overlapping clip
FRAMES_NEAR = 8  # a key frame this close is not worth a jump
# a jump may end a key frame late; pictures refreshed in stripes are whole only a key frame later
KEYS_BACK = 4


class Reader:
    """One open video file.

    `pts` has the time stamps of the frames shown, ascending, and `keys` those of the key frames;
    both are empty if the file gives none that could be used, and frames are then counted. `fps` is
    the average, 0 if the file does not tell.

    Raises: Unreadable, OSError and av.FFmpegError, here and in every method.
    """

    pts: list[int]
    keys: list[int]
    num_frames: int
    fps: float
    converter: Converter
    _frames: Iterator[Any]
    _position: int  # number of the frame decoded last

    def __init__(self, path: str) -> None:
        self.path = path
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._container, self._stream = open_video(path)
        try:
            self.pts, self.keys, self.num_frames = _index(self._container, self._stream)
            self._time_base = self._stream.time_base
            self.fps = float(self._stream.average_rate or self._stream.guessed_rate or 0)
            self._start()
            first = next(self._frames, None)
            if first is None:
                raise Unreadable(NO_VIDEO)
            if self.pts and first.pts != self.pts[0]:
                self.pts = self.keys = []  # this decoder does not pass the times on
            self.converter = Converter(first, self._stream.sample_aspect_ratio)
            self._start()
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Free all but the table of frames; the next picture opens the file again."""
        self._cache.clear()
        self._container.close()
        self._stream, self._frames = None, iter(())
        self._is_open = False

    def start_s(self) -> np.ndarray:
        """Return the time at which every frame is shown, float64 seconds."""
        if self.pts:
            return np.array(self.pts, np.float64) * float(self._time_base)
        return np.arange(self.num_frames) / (self.fps or 1.0)

    def pictures(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each distinct index, ascending, with its picture uint8 [H, W, 3]."""
        if not self._is_open:
            self._start()
        for index in sorted(set(indices)):
            if not 0 <= index < self.num_frames:
                raise Unreadable(f"has {self.num_frames} frames, but frame {index} is asked for")
            yield index, self.converter.picture(self._frame(index))

    def _frame(self, index: int) -> Any:
        if index in self._cache:
            return self._cache[index]
        if not self.pts:
            if index <= self._position:
                self._start()
            return self._forward_to(index)
        last = bisect_right(self.keys, self.pts[index]) - 1
        key_index = bisect_left(self.pts, self.keys[last])
        if self._position < index and key_index <= self._position + FRAMES_NEAR:
            with suppress(Unreadable):
                return self._forward_to(index)
        for number in range(last, max(last - KEYS_BACK, -1), -1):
            with suppress(Unreadable):
                self._jump(number)
                return self._forward_to(index)
        raise Unreadable(DAMAGED)

    def _forward_to(self, index: int) -> Any:
        for frame in self._frames:
            place = bisect_left(self.pts, frame.pts) if self.pts else self._position + 1
            if self.pts and (place == len(self.pts) or self.pts[place] != frame.pts):
                continue
            self._position = place
            self._cache[place] = frame
            limit = max(1, CACHE_BYTES // sum(plane.buffer_size for plane in frame.planes))
            while len(self._cache) > limit:
                self._cache.popitem(last=False)
            if place >= index:
                break
        if index not in self._cache:
            raise Unreadable(DAMAGED)
        return self._cache[index]

    def _start(self) -> None:
        """Open the file again, at its first frame."""
        self._container.close()
        self._container, self._stream = open_video(self.path)
        self._is_open = True
        self._position = -1
        self._frames = self._decode(self._container.demux(self._stream))

    def _jump(self, number: int) -> None:
        """Go to a key frame; the container's own table may lead a little further on."""
        if number == 0:
            self._start()
            return
        self._container.seek(self.keys[number], stream=self._stream)
        self._frames = self._decode(self._container.demux(self._stream))

    def _decode(self, packets: Iterator[Any]) -> Iterator[Any]:
        """Yield the frames from here to the end.

        Raises: Unreadable at the first damage, behind the last sound frame.
        """
        shown_from = None
        try:
            for packet in packets:
                if shown_from is None and self.pts:
                    # frames before a key frame, in either order, need what was not decoded
                    if not packet.is_keyframe:
                        continue
                    shown_from = packet.pts
                if packet.is_corrupt:
                    raise av.InvalidDataError(0, DAMAGED)
                for frame in packet.decode():
                    if shown_from is None or (frame.pts is not None and frame.pts >= shown_from):
                        if frame.is_corrupt:
                            raise Unreadable(DAMAGED)
                        yield frame
        except (av.InvalidDataError, av.EOFError) as error:
            # frames still in the decoder were sent before the damage
            with suppress(av.FFmpegError):
                for frame in self._stream.codec_context.decode(None):
                    if not frame.is_corrupt and frame.pts is not None:
                        yield frame
            raise Unreadable(DAMAGED) from error


def _index(container: Any, stream: Any) -> tuple[list[int], list[int], int]:
    """Return the time stamps of frames and of key frames, ascending, and the number of frames."""
    packets: list[tuple[int | None, bool, bool]] = []
    with suppress(av.FFmpegError):  # cut off: what is there counts
        packets.extend(
            (packet.pts, packet.is_keyframe, packet.is_discard)
            for packet in container.demux(stream)
            if packet.size and not _is_hidden(packet, stream.codec_context.name)
        )
    num_frames = sum(not is_discarded for _, _, is_discarded in packets)
    if num_frames == 0:
        raise Unreadable("no frames")
    stamps = [pts for pts, _, _ in packets if pts is not None]
    places = [place for place, (_, is_key, _) in enumerate(packets) if is_key]
    # AVI stores no times; those of frames shown in another order are FFmpeg's guess
    is_guess = container.format.name == "avi" and stream.codec_context.has_b_frames
    if is_guess or len(stamps) < len(packets) or not places:
        return [], [], num_frames
    # frames before the first key frame, in either order, cannot be decoded
    first, second = places[0], places[1] if len(places) > 1 else len(packets)
    shown = sorted(
        pts
        for place, (pts, (_, _, is_discarded)) in enumerate(zip(stamps, packets, strict=True))
        if not is_discarded and (place >= second or (place >= first and pts >= stamps[first]))
    )
    if not shown or len(set(shown)) < len(shown) or shown[0] < stamps[first]:
        return [], [], num_frames
    return shown, sorted(stamps[place] for place in places), len(shown)


def _is_hidden(packet: Any, codec: str) -> bool:
    """Return whether a packet is an alternate reference of VP8, which is never shown.

    Source: RFC 6386, section 9.1 (show_frame).
    """
    return codec in ("vp8", "libvpx") and not memoryview(packet)[0] >> 4 & 1
