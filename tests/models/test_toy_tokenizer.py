"""The fitted linear tokenizer: causal, unit deviation, and good enough to see the robot."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cosmos_hydra.config import Fit
from cosmos_hydra.data.sources.arm import MOTIONS, VIEWS, render
from cosmos_hydra.data.video import decode, fit_frames, probe, to_pixels, to_signed, write_mp4
from cosmos_hydra.errors import StageError
from cosmos_hydra.models.toy_tokenizer import ToyTokenizer

FRAMES = 17
ENOUGH_DB = 26.0


def psnr_db(pixels: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((pixels.astype(float) - other.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / error))


def round_trip_db(tokenizer: ToyTokenizer, clip_CFHW: torch.Tensor) -> float:
    decoded = tokenizer.decode(tokenizer.encode(clip_CFHW[None]))[0]
    return psnr_db(to_pixels(decoded), to_pixels(clip_CFHW))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[torch.Tensor]:
    """Return rendered clips, written and read back, [3, 17, 96, 128] in [-1, 1]."""
    folder = tmp_path_factory.mktemp("videos")
    read = []
    for number in range(8):
        frames = render(
            list(MOTIONS)[number % 4],
            list(VIEWS)[number // 2],
            num_frames=FRAMES,
            fps=12.0,
            height=96,
            width=128,
            generator=np.random.default_rng(number),
        )
        path = folder / f"{number}.mp4"
        write_mp4(path, frames, 12.0)
        video, _ = fit_frames(decode(path, list(range(FRAMES))), 96, 128, Fit.crop)
        read.append(to_signed(video))
    return read


@pytest.fixture(scope="module")
def fitted(clips: list[torch.Tensor]) -> ToyTokenizer:
    return ToyTokenizer.fit(clips[:6], seed=0)


def test_latents_have_the_shape_of_the_real_tokenizer(
    fitted: ToyTokenizer, clips: list[torch.Tensor]
) -> None:
    latent = fitted.encode(torch.stack(clips[:2]))
    assert (latent.shape, latent.dtype) == ((2, 16, 3, 12, 16), torch.float32)
    assert fitted.decode(latent).shape == (2, 3, FRAMES, 96, 128)


def test_every_channel_has_unit_deviation_over_the_fitted_clips(
    fitted: ToyTokenizer, clips: list[torch.Tensor]
) -> None:
    latent_BCFHW = fitted.encode(torch.stack(clips[:6]))
    for part in (latent_BCFHW, latent_BCFHW[:, :, :1], latent_BCFHW[:, :, 1:]):
        deviation_C = part.std(dim=(0, 2, 3, 4))
        assert torch.allclose(deviation_C, torch.ones(16), atol=0.02)
        assert part.mean(dim=(0, 2, 3, 4)).abs().max() < 0.02


@pytest.mark.parametrize("frame", [0, 1, 8, 9, 16])
def test_a_frame_changes_only_its_own_latent_frame(
    frame: int, fitted: ToyTokenizer, clips: list[torch.Tensor]
) -> None:
    clip = clips[0][None]
    changed = clip.clone()
    changed[:, :, frame] = -changed[:, :, frame]
    difference = (fitted.encode(changed) - fitted.encode(clip)).abs().amax(dim=(0, 1, 3, 4))
    moved = torch.arange(3) == (frame + 7) // 8
    assert torch.equal(difference > 0, moved)


@pytest.mark.parametrize("frames", [1, 9])
def test_a_shorter_clip_has_the_first_latents_of_the_long_one(
    frames: int, fitted: ToyTokenizer, clips: list[torch.Tensor]
) -> None:
    clip = clips[0][None]
    short, long = fitted.encode(clip[:, :, :frames]), fitted.encode(clip)
    assert short.shape[2] == 1 + (frames - 1) // 8
    assert torch.allclose(short, long[:, :, : short.shape[2]], atol=1e-5)
    decoded = fitted.decode(long)
    assert torch.allclose(fitted.decode(short), decoded[:, :, :frames], atol=1e-5)


def test_rendered_videos_survive_the_round_trip(
    fitted: ToyTokenizer, clips: list[torch.Tensor]
) -> None:
    """Also those that the fit has not seen, the last two."""
    assert min(round_trip_db(fitted, clip) for clip in clips) >= ENOUGH_DB


def test_a_tokenizer_of_single_frames_works(clips: list[torch.Tensor]) -> None:
    pictures = [clip[:, :1] for clip in clips]
    tokenizer = ToyTokenizer.fit(pictures, seed=0)
    latent = tokenizer.encode(torch.stack(pictures))
    assert latent.shape == (8, 16, 1, 12, 16)
    assert torch.allclose(latent.std(dim=(0, 2, 3, 4)), torch.ones(16), atol=0.02)
    assert min(round_trip_db(tokenizer, picture) for picture in pictures) >= ENOUGH_DB


def test_a_video_of_one_colour_has_finite_latents() -> None:
    grey = torch.zeros(3, 1, 16, 16)
    tokenizer = ToyTokenizer.fit([grey], seed=0)
    latent = tokenizer.encode(grey[None])
    assert latent.isfinite().all()
    assert torch.allclose(tokenizer.decode(latent), grey[None], atol=1e-3)


def test_a_saved_tokenizer_is_loaded_exactly(
    fitted: ToyTokenizer, clips: list[torch.Tensor], tmp_path: Path
) -> None:
    fitted.save(tmp_path / "tokenizer.safetensors")
    loaded = ToyTokenizer.load(tmp_path / "tokenizer.safetensors")
    assert loaded.identity == fitted.identity
    clip = clips[7][None]
    assert torch.equal(loaded.encode(clip), fitted.encode(clip))


def test_a_damaged_tokenizer_file_is_one_clear_line(
    clips: list[torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.safetensors"
    ToyTokenizer.fit(clips[:1], seed=0).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StageError, match=r"tokenizer.safetensors is damaged \(.*; remove its"):
        ToyTokenizer.load(path)


def test_equal_data_give_equal_files_and_other_data_another_identity(
    fitted: ToyTokenizer, clips: list[torch.Tensor], tmp_path: Path
) -> None:
    again = ToyTokenizer.fit(clips[:6], seed=0)
    for name, tokenizer in (("one", fitted), ("two", again)):
        tokenizer.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert fitted.identity == again.identity
    assert fitted.identity["kind"] == "toy"
    some, others = (ToyTokenizer.fit([clip[:, :1]], seed=0) for clip in clips[:2])
    assert some.identity != others.identity


def test_the_sign_of_a_component_does_not_depend_on_the_eigensolver(
    fitted: ToyTokenizer,
) -> None:
    for part in ("first", "rest"):
        basis_PC = fitted.tensors[f"{part}.basis"]
        assert (basis_PC.amax(0) >= -basis_PC.amin(0)).all()


@pytest.mark.slow
def test_real_robot_videos_survive_the_round_trip(real_videos: Path) -> None:
    clips = []
    for path in sorted((real_videos / "robot").glob("*.mp4")):
        for start in np.linspace(0, probe(path).num_frames - FRAMES, 4).astype(int):
            frames = decode(path, list(range(start, start + FRAMES)))
            clips.append(to_signed(fit_frames(frames, 96, 160, Fit.crop)[0]))
    assert len(clips) == 8
    tokenizer = ToyTokenizer.fit(clips, seed=0)
    assert min(round_trip_db(tokenizer, clip) for clip in clips) >= ENOUGH_DB
    deviation_C = tokenizer.encode(torch.stack(clips)).std(dim=(0, 2, 3, 4))
    assert torch.allclose(deviation_C, torch.ones(16), atol=0.02)
