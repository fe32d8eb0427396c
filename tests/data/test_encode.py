"""Decoded clips to written latents: order, failures, and errors of every stage."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cosmos_hydra.config import DataConfig, Fit
from cosmos_hydra.data.ahead import Decoded, decode_together, read_ahead
from cosmos_hydra.data.clips import TRAIN, Clip
from cosmos_hydra.data.encode import encode_clips
from cosmos_hydra.data.spent import Spent
from cosmos_hydra.data.video import ContentBox, UnreadableVideo, fit_frames, to_signed
from cosmos_hydra.models.toy_tokenizer import ToyTokenizer

CPU = torch.device("cpu")
DATA = DataConfig(name="test", path="unused", frames=9, height=32, width=48, fit=Fit.pad)


@pytest.fixture(scope="module")
def tokenizer() -> ToyTokenizer:
    return ToyTokenizer.fit((to_signed(torch.randint(0, 256, (3, 9, 32, 48))) for _ in "ab"), 0)


def clip(number: int) -> Clip:
    return Clip(f"{number}.mp4", TRAIN, number, tuple(range(9)), 24.0)


def frames_of(number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (9, 40, 40, 3), generator=generator, dtype=torch.uint8)


def test_clips_are_written_in_order_and_those_without_frames_reported(
    tokenizer: ToyTokenizer,
) -> None:
    broken = UnreadableVideo("empty file")
    decoded: list[Decoded] = [(clip(n), broken if n == 1 else frames_of(n)) for n in range(4)]
    written = []

    def write(clip: Clip, box: ContentBox, latent_CFHW: torch.Tensor) -> None:
        written.append((clip, box, latent_CFHW))

    spent = Spent()
    outcomes = list(encode_clips(decoded, tokenizer, DATA, CPU, write, spent))
    assert outcomes == [(clip(n), broken if n == 1 else None) for n in range(4)]
    assert [found for found, _, _ in written] == [clip(0), clip(2), clip(3)]
    for found, box, latent_CFHW in written:
        video_CFHW, expected = fit_frames(frames_of(found.start_frame), 32, 48, Fit.pad)
        assert box == expected
        assert torch.equal(latent_CFHW, tokenizer.encode(to_signed(video_CFHW)[None])[0])
    assert set(spent.seconds) == {"decode", "resize", "encode", "write"}


def test_an_error_while_writing_surfaces(tokenizer: ToyTokenizer) -> None:
    def write(*_: object) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        list(encode_clips([(clip(0), frames_of(0))], tokenizer, DATA, CPU, write))


def test_reading_ahead_keeps_the_order_and_its_distance() -> None:
    asked, done = [], []
    may_end = threading.Event()

    def items() -> Iterator[int]:
        for number in range(8):
            asked.append(number)
            yield number

    def read(number: int) -> int:
        may_end.wait()
        time.sleep(0.01 * (number % 2 == 0))  # later ones are ready first
        done.append(number)
        return 10 * number

    with ThreadPoolExecutor(3) as executor:
        ahead = read_ahead(items(), read, executor, 3)
        may_end.set()
        assert next(ahead) == (0, 0)
        assert asked == [0, 1, 2, 3]
        assert list(ahead) == [(number, 10 * number) for number in range(1, 8)]


def window(video: str, start: int, step: int = 1) -> Clip:
    return Clip(video, TRAIN, start, tuple(range(start, start + 9 * step, step)), 24.0)


def numbered(video: str, indices: list[int]) -> torch.Tensor:
    """Return frames whose pixels are their number."""
    return torch.tensor(indices, dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 2, 3)


def test_neighbours_that_overlap_are_read_once_as_far_as_memory_goes() -> None:
    clips = [
        *(window("a", start) for start in (0, 3, 5, 9, 40)),
        *(window("b", 40), window("b", 44, step=2), window("b", 45, step=2)),
        *(window("c", 0), window("c", 30)),
    ]
    asked = []

    def read(video: str, indices: list[int]) -> torch.Tensor | UnreadableVideo:
        asked.append((video, len(indices)))
        return broken if video == "c" else numbered(video, indices)

    broken = UnreadableVideo("empty file")
    with ThreadPoolExecutor(1) as executor:
        found = list(decode_together(clips, read, lambda video: 16, executor, 2))
    assert [clip for clip, _ in found] == clips
    for clip, frames in found:
        if clip.video == "c":
            assert frames is broken
        else:
            assert isinstance(frames, torch.Tensor)
            assert frames[:, 0, 0, 0].tolist() == list(clip.frame_indices)
    # frames 0 to 13, 9 to 17, 40 to 48; 40 to 60 in steps, then what would be more than 16
    assert asked == [("a", 14), ("a", 9), ("a", 9), ("b", 15), ("b", 9), ("c", 9), ("c", 9)]


def test_consecutive_frames_are_not_copied() -> None:
    clips = [window("a", 0), window("a", 4)]
    whole = torch.zeros(13, 2, 2, 3, dtype=torch.uint8)
    with ThreadPoolExecutor(1) as executor:
        found = list(decode_together(clips, lambda *_: whole, lambda video: 16, executor, 1))
    pointers = {frames.untyped_storage().data_ptr() for _, frames in found}
    assert pointers == {whole.untyped_storage().data_ptr()}


def test_reading_ahead_raises_what_reading_raised_when_its_turn_comes() -> None:
    with ThreadPoolExecutor(2) as executor:
        ahead = read_ahead([2, 1, 0, 3], lambda number: 6 // number, executor, 2)
        assert [next(ahead), next(ahead)] == [(2, 3), (1, 6)]
        with pytest.raises(ZeroDivisionError):
            next(ahead)
