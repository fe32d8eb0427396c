"""Preprocessing on a CUDA device, against the same on the CPU; skipped without one."""

import copy
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from diffusers import AutoencoderKLCosmos

from cosmos_hydra.config import DataConfig, Fit
from cosmos_hydra.data.ahead import Decoded
from cosmos_hydra.data.clips import TRAIN, Clip
from cosmos_hydra.data.encode import encode_clips
from cosmos_hydra.data.spent import Spent
from cosmos_hydra.data.video import ContentBox, UnreadableVideo, fit_frames, to_signed
from cosmos_hydra.models.fast_autoencoder import Way, speed_up
from cosmos_hydra.models.toy_tokenizer import ToyTokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DATA = DataConfig(name="test", path="unused", frames=9, height=32, width=48, fit=Fit.crop)
CLIPS = 40
BROKEN = 7


@pytest.fixture(scope="module")
def tokenizer() -> ToyTokenizer:
    return ToyTokenizer.fit((to_signed(torch.randint(0, 256, (3, 9, 32, 48))) for _ in "ab"), 0)


def clip(number: int) -> Clip:
    return Clip(f"{number}.mp4", TRAIN, number, tuple(range(9)), 24.0)


def frames_of(number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    size = 40 + 8 * (number % 3)  # slots are filled with clips of several sizes
    return torch.randint(0, 256, (9, size, 60, 3), generator=generator, dtype=torch.uint8)


def decoded(error_at: int | None = None) -> Iterator[Decoded]:
    for number in range(CLIPS):
        if number == error_at:
            raise RuntimeError("decoder died")
        if number == BROKEN:
            yield clip(number), UnreadableVideo("empty file")
        else:
            yield clip(number), frames_of(number)


def test_every_clip_arrives_with_its_own_latent(tokenizer: ToyTokenizer) -> None:
    written: dict[int, torch.Tensor] = {}
    slow = threading.Lock()

    def write(clip: Clip, box: ContentBox, latent_CFHW: torch.Tensor) -> None:
        with slow:
            time.sleep(0.002)
        written[clip.start_frame] = latent_CFHW.clone()

    spent = Spent()
    device = torch.device("cuda")
    outcomes = list(encode_clips(decoded(), tokenizer, DATA, device, write, spent))
    assert [found.start_frame for found, _ in outcomes] == list(range(CLIPS))
    assert [found.start_frame for found, error in outcomes if error] == [BROKEN]
    assert sorted(written) == [number for number in range(CLIPS) if number != BROKEN]
    for number, latent_CFHW in written.items():
        video_CFHW, _ = fit_frames(frames_of(number), 32, 48, Fit.crop)
        expected = tokenizer.encode(to_signed(video_CFHW)[None])[0]
        torch.testing.assert_close(latent_CFHW.float(), expected, rtol=0.02, atol=0.05)
    assert {"resize", "encode", "copy back", "write"} <= set(spent.seconds)


def test_errors_of_every_stage_surface_and_no_thread_stays(tokenizer: ToyTokenizer) -> None:
    def write(clip: Clip, box: ContentBox, latent_CFHW: torch.Tensor) -> None:
        if clip.start_frame == 5:
            raise OSError("disk full")

    device = torch.device("cuda")
    with pytest.raises(RuntimeError, match="decoder died"):
        list(encode_clips(decoded(3), tokenizer, DATA, device, write))
    with pytest.raises(OSError, match="disk full"):
        list(encode_clips(decoded(), tokenizer, DATA, device, write))
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("upload", "ThreadPool"))]


@pytest.mark.parametrize("fit", list(Fit))
def test_pictures_fitted_on_the_gpu_differ_by_one_at_most(fit: Fit) -> None:
    frames = torch.randint(0, 256, (20, 90, 120, 3), dtype=torch.uint8)
    for size in ((32, 48), (192, 320)):
        here, _ = fit_frames(frames, *size, fit)
        there, _ = fit_frames(frames.cuda(), *size, fit)
        assert (here.int() - there.cpu().int()).abs().max() <= 1


@pytest.mark.parametrize("is_compiled", [False, True])
@torch.no_grad()
def test_the_fast_autoencoder_is_as_close_to_float32_as_diffusers_own(is_compiled: bool) -> None:
    torch.manual_seed(0)
    exact = AutoencoderKLCosmos(
        encoder_block_out_channels=(32, 32, 64, 64),
        decode_block_out_channels=(32, 64, 64, 64),
        num_layers=1,
    )
    exact = exact.cuda().requires_grad_(False).eval()
    eager, fast = (copy.deepcopy(exact).to(torch.bfloat16) for _ in range(2))
    ways = [Way.channels_last, Way.flat, Way.matmul, Way.patches]
    speed_up(fast, [*ways, Way.norms, Way.compile] if is_compiled else ways)
    video = torch.rand(1, 3, 17, 64, 96, device="cuda") * 2 - 1
    latent = exact.encode(video).latent_dist.mode()
    decoded = exact.decode(latent).sample
    errors = []
    for other in (eager, fast):
        found = other.encode(video.bfloat16()).latent_dist.mode()
        again = other.decode(latent.bfloat16()).sample
        errors.append([(found - latent).pow(2).mean(), (again - decoded).pow(2).mean()])
    for eager_error, fast_error in zip(*errors, strict=True):
        assert fast_error < 1.2 * eager_error
