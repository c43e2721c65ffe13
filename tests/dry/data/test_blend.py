"""The mixture: exact shares in a block, near exact ones everywhere, every sample of a set once and in order."""

import numpy as np
import pytest

from mindmoe.data.blend import BLOCK, Blend, block_counts
from mindmoe.host.errors import UserError

WEIGHTS = [[1.0], [1, 1], [0.7, 0.3], [3, 2, 1], [1e-3, 1, 10], [0.1] * 10, [5, 1e-4, 1e-4, 2.5, 1]]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_shares(weights: list[float]) -> None:
    share = np.array(weights) / sum(weights)
    counts = block_counts(weights)
    assert counts.sum() == BLOCK
    assert (np.abs(counts - share * BLOCK) < 1).all()
    sets, _ = Blend(weights)(np.arange(3 * BLOCK))
    for block in sets.reshape(3, BLOCK):
        assert np.array_equal(np.bincount(block, minlength=len(weights)), counts)
    # Halves are rounded in each set, and their sum shifts the position by at most half the number of sets.
    taken = np.cumsum(sets[:, None] == np.arange(len(weights)), axis=0)
    wanted = np.arange(1, 3 * BLOCK + 1)[:, None] * (counts / BLOCK)
    assert (np.abs(taken - wanted) <= 0.5 + share * len(weights) / 2 + 1e-6).all()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_each_set_is_read_in_order_without_gaps(weights: list[float]) -> None:
    sets, served = Blend(weights)(np.arange(2 * BLOCK))
    for number in range(len(weights)):
        assert np.array_equal(served[sets == number], np.arange((sets == number).sum()))


def test_pure_function_of_the_index() -> None:
    blend = Blend([0.6, 0.4])
    far = 10**13 + np.arange(100)
    sets, served = blend(far)
    picks = np.array([91, 3, 50])
    assert np.array_equal(blend(far[picks])[0], sets[picks])
    assert np.array_equal(blend(far[picks])[1], served[picks])
    assert abs(served[sets == 0][0] / far[0] - 0.6) < 1e-4  # the share of a block is a multiple of 1 / BLOCK


def test_even_weights_alternate() -> None:
    assert Blend([1, 1])(np.arange(6))[0].tolist() == [0, 1, 0, 1, 0, 1]


def test_a_share_too_small_is_refused() -> None:
    with pytest.raises(UserError, match=r"weight 1e-06 of source 1 .* would never be read"):
        Blend([1.0, 1e-6])
