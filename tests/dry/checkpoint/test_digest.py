"""Sums behind digests by the C++ pack and by NumPy: equal in every bit. What digests are for: test_chunks.py."""

import numpy as np
import pytest

from mindmoe.checkpoint import digest
from mindmoe.ops.cpu.build import best_isa, library


@pytest.mark.parametrize("word", ["u1", "u2", "u4", "u8"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (300, 1000), (3, 100001), (5, 0)])
def test_compiled_sums_equal_those_of_numpy(word, shape):
    library(best_isa())  # builds it where the cache lacks it
    digest._compiled_sums.cache_clear()
    compiled, rng = digest._compiled_sums(), np.random.default_rng(0)
    assert compiled is not None
    rows = rng.integers(0, np.iinfo(word).max, shape, dtype=word)
    weights = rng.integers(0, 2**64, shape[1], dtype=np.uint64)
    np.testing.assert_array_equal(compiled(rows, weights), digest.numpy_sums(rows, weights))


def test_digests_need_no_compiler(monkeypatch):
    array = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    want = digest.tensor_sum(array, (1, 2, 3))
    monkeypatch.setattr(digest, "_compiled_sums", lambda: None)
    assert digest.tensor_sum(array, (1, 2, 3)) == want
