"""The permutation is a bijection for every size, looks random, and is the same everywhere."""

import numpy as np
import pytest

from mindmoe.data.permutation import Permutation


@pytest.mark.parametrize("n", [*range(1, 66), 99, 100, 101, 255, 256, 257, 1000, 4095, 4096, 4097, 65_537, 100_003])
def test_bijection(n: int) -> None:
    for key in ((0,), (1, 2, 3)):
        image = Permutation(n, *key)(np.arange(n))
        assert image.dtype == np.int64
        assert np.array_equal(np.sort(image), np.arange(n))


@pytest.mark.parametrize("n", [2**31 + 7, 10**12, 2**53 + 1, 2**62])
def test_large_domains(n: int) -> None:
    positions = np.unique(np.concatenate([np.arange(500), n - 1 - np.arange(500), np.arange(1, 500) * (n // 500)]))
    permutation = Permutation(n, 5)
    image = permutation(positions)
    assert image.min() >= 0 and image.max() < n
    assert len(np.unique(image)) == len(positions)
    assert abs(image.mean() / n - 0.5) < 0.05  # 1500 uniform draws: standard error 0.0075


def test_vector_equals_single_positions() -> None:
    permutation = Permutation(1000, 3, 1)
    whole = permutation(np.arange(1000))
    assert [int(permutation(np.array([i]))[0]) for i in range(0, 1000, 37)] == whole[::37].tolist()


def test_keys_give_different_orders() -> None:
    orders = {tuple(Permutation(50, *key)(np.arange(50))) for key in [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]}
    assert len(orders) == 6


@pytest.mark.parametrize("n", [2, 3, 10])
def test_every_image_is_equally_likely(n: int) -> None:
    """Chi-squared over 600 keys for each position; the bound is mean + 6 standard deviations."""
    keys = 600
    counts = np.zeros((n, n))
    for key in range(keys):
        counts[np.arange(n), Permutation(n, 17, key)(np.arange(n))] += 1
    chi2 = ((counts - keys / n) ** 2 / (keys / n)).sum(axis=1)
    assert (chi2 < (n - 1) + 6 * np.sqrt(2 * (n - 1))).all()


def test_neighbours_are_scattered() -> None:
    n = 10_000
    image = Permutation(n, 1)(np.arange(n))
    # For a random permutation the mean distance of neighbours is n / 3, its standard error about 0.24 % of n.
    assert abs(np.abs(np.diff(image)).mean() / n - 1 / 3) < 0.02
    assert abs(np.corrcoef(np.arange(n), image)[0, 1]) < 0.05


def test_order_is_frozen() -> None:
    """The order of a run must not change between versions: these values were computed once and stay."""
    assert Permutation(10, 1, 2, 3)(np.arange(10)).tolist() == [0, 7, 2, 4, 1, 9, 8, 3, 5, 6]
    assert Permutation(10**12, 7)(np.array([0, 1, 10**12 - 1])).tolist() == [662963741779, 123227183400, 426662985598]


@pytest.mark.parametrize("n", [0, -1, 2**62 + 1])
def test_sizes_outside_the_domain(n: int) -> None:
    with pytest.raises(ValueError, match="not between 1 and"):
        Permutation(n)
