"""Embedding against indexing and np.add.at."""

import numpy as np
import pytest

from mindmoe.ops.cpu.embedding import Embedding


def oracle(ids, w):
    inside = (ids >= 0) & (ids < len(w))
    rows = np.where(inside[..., None], w[np.where(inside, ids, 0)], 0)

    def backward(dy):
        dw = np.zeros_like(w)
        np.add.at(dw, ids[inside], dy[inside])
        return (dw,)

    return (rows,), backward


@pytest.mark.parametrize(("shape", "words", "width"), [((3, 100), 60, 33), ((1,), 1, 1), ((5,), 1000, 16)])
def test_values_and_gradient(case, rng, shape, words, width):
    ids = rng.integers(-1, words + 1, shape)
    case.check(Embedding(case.pack), oracle, [ids, rng.standard_normal((words, width))], (1,), 1e-5)
