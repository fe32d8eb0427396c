"""AutoencoderKLCosmos from a folder: a tiny random one of the real class."""

from pathlib import Path

import pytest
import torch
from tiny_folders import write_tiny_cosmos

from cosmos_hydra.config import ModelConfig, TokenizerConfig, TokenizerKind
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.models.tokenizer import CosmosTokenizer, Tokenizer, load_tokenizer

CPU = torch.device("cpu")
FRAMES = 17


def load(path: Path | None) -> Tokenizer:
    tokenizer = TokenizerConfig(TokenizerKind.cosmos, path and str(path))
    return load_tokenizer(ModelConfig(tokenizer=tokenizer), Path("unused"), CPU)


@pytest.fixture(scope="module")
def data() -> torch.Tensor:
    """Return six videos [6, 3, 17, 32, 48] in [-1, 1], smooth in space and time."""
    coarse = torch.rand(6, 3, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, size=(FRAMES, 32, 48), mode="trilinear")
    return fine * 2 - 1


@pytest.fixture(scope="module")
def folder(data: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cosmos") / "vae"
    write_tiny_cosmos(folder, data)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load(folder)


def raw_latents(folder: Path, video_BCFHW: torch.Tensor) -> torch.Tensor:
    from diffusers import AutoencoderKLCosmos

    with torch.no_grad():
        return AutoencoderKLCosmos.from_pretrained(folder).encode(video_BCFHW).latent_dist.mode()


@pytest.mark.parametrize("frames", [1, 9, 17])
def test_one_latent_frame_and_one_more_for_every_eight(
    frames: int, tokenizer: Tokenizer, data: torch.Tensor
) -> None:
    latent = tokenizer.encode(data[:2, :, :frames])
    assert (latent.shape, latent.dtype) == ((2, 16, 1 + (frames - 1) // 8, 4, 6), torch.float32)
    decoded = tokenizer.decode(latent)
    assert (decoded.shape, decoded.dtype) == ((2, 3, frames, 32, 48), torch.float32)


def test_latents_leave_with_unit_deviation_per_channel_and_frame(
    tokenizer: Tokenizer, data: torch.Tensor
) -> None:
    latent = tokenizer.encode(data)
    assert torch.allclose(latent.std(dim=(0, 3, 4)), torch.ones(16, 3), atol=0.02)
    assert latent.mean(dim=(0, 3, 4)).abs().max() < 0.02


def test_latents_are_normalised_as_the_diffusers_pipeline_does(
    tokenizer: Tokenizer, folder: Path, data: torch.Tensor
) -> None:
    """Source: diffusers pipelines/cosmos/pipeline_cosmos_text2world.py."""
    assert isinstance(tokenizer, CosmosTokenizer)
    config = tokenizer.autoencoder.config
    raw = raw_latents(folder, data)
    mean, std = (
        torch.tensor(values).view(1, config.latent_channels, -1, 1, 1)[:, :, : raw.size(2)]
        for values in (config.latents_mean, config.latents_std)
    )
    assert len(config.latents_mean) == 16 * 3
    assert torch.allclose(tokenizer.encode(data), (raw - mean) / std, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 9])
def test_fewer_frames_use_the_first_of_the_statistics(
    frames: int, tokenizer: Tokenizer, data: torch.Tensor
) -> None:
    """The encoder is causal, so a cut clip has the first latents of the long one."""
    short = tokenizer.encode(data[:, :, :frames])
    long = tokenizer.encode(data)
    assert torch.allclose(short, long[:, :, : short.shape[2]], atol=1e-4)


@pytest.fixture(scope="module")
def released(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return a tokenizer with statistics like the release's: 16 channels of 16 latent frames."""
    from diffusers import AutoencoderKLCosmos

    autoencoder = AutoencoderKLCosmos.from_pretrained(folder)
    mean = [0.1 * channel - 0.01 * frame for channel in range(16) for frame in range(16)]
    std = [0.5 + 0.1 * channel + 0.02 * frame for channel in range(16) for frame in range(16)]
    autoencoder.register_to_config(latents_mean=mean, latents_std=std)
    path = tmp_path_factory.mktemp("released") / "vae"
    autoencoder.save_pretrained(path)
    return load(path)


@pytest.mark.parametrize("frames", [1, 9, 17, 121])
def test_statistics_of_the_release_hold_for_each_channel_and_frame(
    frames: int, released: Tokenizer, folder: Path, data: torch.Tensor
) -> None:
    from diffusers import AutoencoderKLCosmos

    video = data[:1, :, [min(frame, FRAMES - 1) for frame in range(frames)]][..., :16, :16]
    raw, latent = raw_latents(folder, video), released.encode(video)
    assert latent.shape[2] == 1 + (frames - 1) // 8
    for channel in range(16):
        for frame in range(latent.shape[2]):
            mean, std = 0.1 * channel - 0.01 * frame, 0.5 + 0.1 * channel + 0.02 * frame
            torch.testing.assert_close(
                latent[:, channel, frame], (raw[:, channel, frame] - mean) / std
            )
    with torch.no_grad():
        expected = AutoencoderKLCosmos.from_pretrained(folder).decode(raw).sample
    assert torch.allclose(released.decode(latent), expected, atol=1e-4)


def test_decode_takes_back_what_encode_did(
    tokenizer: Tokenizer, folder: Path, data: torch.Tensor
) -> None:
    assert isinstance(tokenizer, CosmosTokenizer)
    with torch.no_grad():
        expected = tokenizer.autoencoder.decode(raw_latents(folder, data[:1])).sample
    assert torch.allclose(tokenizer.decode(tokenizer.encode(data[:1])), expected, atol=1e-4)


def test_more_frames_than_statistics_are_an_error(tokenizer: Tokenizer, data: torch.Tensor) -> None:
    long = data.repeat(1, 1, 2, 1, 1)[:1, :, :25]
    message = (
        "data.frames gives 4 latent frames but the tokenizer has statistics for 3; "
        "at most 17 frames"
    )
    with pytest.raises(ConfigError) as caught:
        tokenizer.encode(long)
    assert str(caught.value) == message
    with pytest.raises(ConfigError) as caught:
        tokenizer.decode(torch.zeros(1, 16, 4, 4, 6))
    assert str(caught.value) == message


def test_one_number_a_channel_or_none_holds_for_any_length(
    folder: Path, data: torch.Tensor, tmp_path: Path
) -> None:
    from diffusers import AutoencoderKLCosmos

    autoencoder = AutoencoderKLCosmos.from_pretrained(folder)
    raw = raw_latents(folder, data)
    for name, mean, std, expected in (
        ("none", None, None, raw),
        ("one", [0.5] * 16, [2.0] * 16, (raw - 0.5) / 2),
    ):
        autoencoder.register_to_config(latents_mean=mean, latents_std=std)
        autoencoder.save_pretrained(tmp_path / name)
        assert torch.allclose(load(tmp_path / name).encode(data), expected, atol=1e-5)


def test_weights_are_frozen_and_the_identity_follows_the_folder(
    tokenizer: Tokenizer, folder: Path, tmp_path: Path, data: torch.Tensor
) -> None:
    assert isinstance(tokenizer, CosmosTokenizer)
    assert not any(parameter.requires_grad for parameter in tokenizer.autoencoder.parameters())
    assert not tokenizer.autoencoder.training
    assert tokenizer.identity == load(folder).identity
    write_tiny_cosmos(tmp_path / "other", data[:3])
    assert load(tmp_path / "other").identity != tokenizer.identity


def test_a_folder_without_the_autoencoder_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None)
    assert str(caught.value) == (
        "model.tokenizer.path=null; set it to the folder of AutoencoderKLCosmos"
    )
    for missing in ("config.json", "*.safetensors"):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path)
        assert str(caught.value) == (
            f"model.tokenizer.path={tmp_path} holds no {missing}; "
            f"it should be a folder of AutoencoderKLCosmos in diffusers layout"
        )
        (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
