"""The autoencoder made faster gives what diffusers' own code gives."""

import copy
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCosmos

from cosmos_hydra.models import fast_autoencoder
from cosmos_hydra.models.fast_autoencoder import Way, speed_up

UNCOMPILED = [Way.channels_last, Way.flat, Way.norms, Way.matmul, Way.patches]


@pytest.fixture(scope="module")
def autoencoder() -> Any:
    torch.manual_seed(0)
    made = AutoencoderKLCosmos(
        encoder_block_out_channels=(8, 8, 16, 16),
        decode_block_out_channels=(8, 16, 16, 16),
        num_layers=1,
    )
    for parameter in made.parameters():  # norms and biases too must matter
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    return made.requires_grad_(False).eval()


def code(autoencoder: Any, frames: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    video = torch.rand(batch, 3, frames, 32, 48, generator=torch.Generator().manual_seed(1))
    latent = autoencoder.encode(video * 2 - 1).latent_dist.mode()
    return latent, autoencoder.decode(torch.ones_like(latent) + latent).sample


@pytest.mark.parametrize("ways", [*([way] for way in UNCOMPILED), UNCOMPILED], ids=str)
def test_each_way_encodes_and_decodes_as_before(autoencoder: Any, ways: list[Way]) -> None:
    changed = copy.deepcopy(autoencoder)
    speed_up(changed, ways)
    for frames, batch in ((1, 1), (17, 2)):
        for found, expected in zip(
            code(changed, frames, batch), code(autoencoder, frames, batch), strict=True
        ):
            assert expected.std() > 0.05
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_attention_over_large_pictures_takes_a_part_of_them_at_a_time(
    autoencoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = copy.deepcopy(autoencoder)
    speed_up(changed, [Way.matmul])
    monkeypatch.setattr(fast_autoencoder, "MAX_SCORES", 5 * 4 * 6)  # 5 rows of 24 scores
    for found, expected in zip(code(changed, 9, 1), code(autoencoder, 9, 1), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_weights_keep_their_names_and_values(autoencoder: Any) -> None:
    changed = copy.deepcopy(autoencoder)
    speed_up(changed, UNCOMPILED)
    before, after = autoencoder.state_dict(), changed.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_compiling_takes_the_wavelet_transform_that_it_gets_right(autoencoder: Any) -> None:
    changed = copy.deepcopy(autoencoder)
    speed_up(changed, [Way.compile])
    pixels = torch.rand(1, 3, 9, 16, 16)
    whole = torch.compile(changed.encoder.patch_embed, backend="eager", fullgraph=True)
    expected = autoencoder.encoder.patch_embed(pixels)
    torch.testing.assert_close(whole(pixels), expected, rtol=1e-5, atol=1e-5)
