"""Attention with a cache, in pieces of any length, against attention over the whole sequence."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindmoe.ops.cpu.attention import Attention, CachedAttention
from mindmoe.ops.cpu.pack import STORAGE


def inputs(rng, batch, length, heads, kv, hd):
    q, k, v = (rng.standard_normal((batch, length, n * hd)).astype(np.float32) for n in (heads, kv, kv))
    angles = np.outer(np.arange(length), 10.0 ** -np.arange(hd // 2))
    return q, k, v, np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("window", [0, 7])
@pytest.mark.parametrize("pieces", [(1,) * 9, (20, 1, 1, 3), (600, 1, 15)])
def test_pieces_equal_the_whole(case, rng, precision, window, pieces):
    batch, heads, kv, hd, length = 2, 4, 2, 10, sum(pieces)
    q, k, v, cos, sin = inputs(rng, batch, length, heads, kv, hd)
    sinks = Tensor(rng.standard_normal(heads).astype(np.float32)) if window else None
    cos, sin = Tensor(cos), Tensor(sin)
    whole = Attention(hd**-0.5, window, precision, pack=case.pack)(
        Tensor(q), Tensor(k), Tensor(v), cos, sin, sinks, Tensor(np.zeros((batch, length), np.int32))
    ).asnumpy()
    op = CachedAttention(hd**-0.5, window, precision, pack=case.pack)
    keys, values = (
        ms.Parameter(Tensor(np.full((batch, kv, length, hd), np.nan, np.float32)).astype(STORAGE[precision]), name=name)
        for name in "kv"
    )

    def step(q, k, v, start):
        return op(q, k, v, cos, sin, sinks, start, keys, values)

    run = ms.jit(step) if case.jit else step
    at = 0
    for count in pieces:
        part = [Tensor(x[:, at : at + count]) for x in (q, k, v)]
        got = run(*part, Tensor(np.array([at], np.int32))).asnumpy()
        tolerance = {"fp32": 1e-5, "bf16": 1e-2}[precision]  # bf16: blocks of keys start elsewhere, so sums round anew
        np.testing.assert_allclose(got, whole[:, at : at + count], atol=tolerance * np.abs(whole).max())
        at += count


def test_a_full_cache_is_refused(case, rng):
    q, k, v, cos, sin = (Tensor(x) for x in inputs(rng, 1, 4, 2, 1, 4))
    keys, values = (Tensor(np.zeros((1, 1, 4, 4), np.float32)) for _ in range(2))
    op = CachedAttention(1.0, pack=case.pack)
    with pytest.raises(RuntimeError):
        op(q, k, v, cos, sin, None, Tensor(np.array([1], np.int32)), keys, values).asnumpy()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bitwise_equal_for_any_number_of_threads(case, rng, precision):
    q, k, v, cos, sin = (Tensor(x) for x in inputs(rng, 2, 300, 4, 2, 32))
    op, before, results = CachedAttention(0.2, 100, precision, pack=case.pack), case.pack.threads, set()
    try:
        for count in (1, 2, 3, 8):
            case.pack.set_threads(count)
            keys, values = (Tensor(np.zeros((2, 2, 300, 32), np.float32)).astype(STORAGE[precision]) for _ in range(2))
            out = op(q, k, v, cos, sin, None, Tensor(np.array([0], np.int32)), keys, values).asnumpy()
            results.add((out.tobytes(), keys.astype(ms.float32).asnumpy().tobytes()))
    finally:
        case.pack.set_threads(before)
    assert len(results) == 1
