"""Fixed values: a change here would change every data split, order, noise and video."""

import hashlib

import numpy as np
import pytest
import torch

from cosmos_hydra.seeds import numpy_generator, seed_of, torch_generator


@pytest.mark.parametrize(
    ("key", "seed"),
    [
        ((), 8203414616412130826),
        ((0, "train", 3, "12", 0), 1885099122418647701),
        (("a", 1.5), 4116622913297419705),
    ],
)
def test_seeds_never_change(key: tuple, seed: int) -> None:
    assert seed_of(*key) == seed


def test_a_seed_is_the_first_63_bits_of_a_hash_of_the_key() -> None:
    digest = hashlib.sha256(b"7\x1forder\x1f2").hexdigest()
    assert seed_of(7, "order", 2) == int(digest[:16], 16) // 2


def test_draws_never_change() -> None:
    drawn = torch.randn(3, generator=torch_generator(0, "golden"))
    expected = torch.tensor([0.17997696995735168, 0.3751971125602722, -0.21531347930431366])
    torch.testing.assert_close(drawn, expected, rtol=1e-6, atol=0)
    assert numpy_generator(0, "golden").integers(0, 1000, 4).tolist() == [388, 64, 78, 557]
    assert numpy_generator(0, "order", 0).permutation(7).tolist() == [0, 4, 5, 2, 6, 3, 1]


def test_keys_that_only_look_alike_differ() -> None:
    keys = [(1, 23), (12, 3), ("1", "2", "3"), ("123",), (0, "init"), (0, "init", "")]
    assert len({seed_of(*key) for key in keys}) == len(keys)
    assert len({seed_of("train", step) for step in range(10_000)}) == 10_000


def test_generators_are_independent_of_the_global_ones() -> None:
    before = torch.get_rng_state()
    first = torch.randn(2, generator=torch_generator("x"))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(torch.randn(2, generator=torch_generator("x")), first)
    assert numpy_generator("x").random() == numpy_generator("x").random()
