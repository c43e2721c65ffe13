"""Entropies against closed forms and against a loop over a dictionary."""

import math
from collections import Counter

import numpy as np
import pytest

from mindmoe.data.entropy import unigram_bigram


def by_counting(rows: np.ndarray) -> tuple[float, float]:
    pairs = Counter((int(a), int(b)) for row in rows for a, b in zip(row[:-1], row[1:], strict=True))
    total = sum(pairs.values())
    first, second = Counter(), Counter()
    for (a, b), count in pairs.items():
        first[a] += count
        second[b] += count
    unigram = -sum(c / total * math.log(c / total) for c in second.values())
    bigram = -sum(c / total * math.log(c / first[a]) for (a, _), c in pairs.items())
    return unigram, bigram


def test_a_constant_has_none() -> None:
    assert unigram_bigram(np.full((3, 9), 7)) == (0.0, 0.0)


def test_a_cycle_has_no_conditional_entropy() -> None:
    unigram, bigram = unigram_bigram(np.tile(np.arange(8), (1, 5))[:, :33])
    assert unigram == pytest.approx(math.log(8), abs=1e-12)
    assert bigram == pytest.approx(0.0, abs=1e-12)


def test_a_de_bruijn_sequence_has_both_in_full() -> None:
    """Every pair of the alphabet once, so that the next symbol is uniform given the last."""
    row = np.array([0, 0, 1, 0, 2, 0, 3, 1, 1, 2, 1, 3, 2, 2, 3, 3, 0])
    assert unigram_bigram(row[None]) == pytest.approx((math.log(4), math.log(4)), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_equals_counting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = np.minimum(rng.geometric(0.2, (7, 50)), 3000).astype(np.int32)
    assert unigram_bigram(rows) == pytest.approx(by_counting(rows), abs=1e-12)


def test_a_markov_chain_is_recovered() -> None:
    """Next token = same with 0.9, other with 0.1: conditional entropy 0.325 nats; 1e5 draws give about 0.003."""
    rng = np.random.default_rng(0)
    chain = np.cumsum(rng.random(100_001) < 0.1) % 2
    exact = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert unigram_bigram(chain[None]) == pytest.approx((math.log(2), exact), abs=0.01)


@pytest.mark.parametrize("shape", [(0, 5), (3, 1), (4,)])
def test_no_pairs(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no pair"):
        unigram_bigram(np.zeros(shape, np.int32))
