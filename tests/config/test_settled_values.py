"""Values that are brought to the nearest legal one, with a message."""

import pytest
from composing import changed

from cosmos_hydra.checks import settle


@pytest.mark.parametrize(
    ("frames", "legal"), [(2, 1), (8, 1), (10, 9), (16, 9), (24, 17), (120, 113), (128, 121)]
)
def test_frames_are_cut_down_to_8k_plus_1_with_a_message(frames: int, legal: int) -> None:
    config = changed(f"data.frames={frames}")
    assert settle(config) == [
        f"data.frames={frames} is not 8k+1: {legal} are used, {frames - legal} dropped"
    ]
    assert config.data.frames == legal


@pytest.mark.parametrize("frames", [1, 9, 17, 57, 121])
def test_frames_of_8k_plus_1_stay_without_a_message(frames: int) -> None:
    config = changed(f"data.frames={frames}")
    assert settle(config) == []
    assert config.data.frames == frames


def test_a_forward_pass_is_never_larger_than_the_step() -> None:
    config = changed("trainer.global_batch_size=2", "trainer.micro_batch_size=8")
    assert settle(config) == []
    assert config.trainer.micro_batch_size == 2
