"""Decoded clips to written latents: order, failures, and errors of every stage."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cosmos_hydra.config import DataConfig, Fit
from cosmos_hydra.data.clips import TRAIN, Clip
from cosmos_hydra.data.encode import Decoded, Spent, encode_clips, read_ahead
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


def test_reading_ahead_raises_what_reading_raised_when_its_turn_comes() -> None:
    with ThreadPoolExecutor(2) as executor:
        ahead = read_ahead([2, 1, 0, 3], lambda number: 6 // number, executor, 2)
        assert [next(ahead), next(ahead)] == [(2, 3), (1, 6)]
        with pytest.raises(ZeroDivisionError):
            next(ahead)
