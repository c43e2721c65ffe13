"""Attention against the full matrix of scores."""

import numpy as np
import pytest

from mindmoe.ops.cpu.attention import Attention

TOLERANCE = {"fp32": 1e-5, "bf16": 1.5e-2}


def rotate(x, cos, sin):
    """Rotate-half RoPE of x (B, S, H, hd) by cos, sin (S, hd/2)."""
    first, second = np.split(x, 2, -1)
    c, s = cos[None, :, None], sin[None, :, None]
    return np.concatenate([first * c - second * s, second * c + first * s], -1)


def visible(segments, window):
    """(B, S, S): whether query i sees key j."""
    i, j = np.indices((segments.shape[1],) * 2)
    mask = (j <= i) & ((window == 0) | (j > i - window))
    return mask[None] & (segments[:, :, None] == segments[:, None, :])


def oracle(q, k, v, sinks, cos, sin, segments, window, scale):
    batch, length, hd = q.shape[0], q.shape[1], 2 * cos.shape[1]
    heads, kv = q.shape[2] // hd, k.shape[2] // hd
    group = heads // kv
    qr = rotate(q.reshape(batch, length, heads, hd), cos, sin)
    kr = np.repeat(rotate(k.reshape(batch, length, kv, hd), cos, sin), group, 2)
    vr = np.repeat(v.reshape(batch, length, kv, hd), group, 2)
    scores = np.where(
        visible(segments, window)[:, None], np.einsum("bihd,bjhd->bhij", qr, kr, optimize=True) * scale, -np.inf
    )
    sink = np.full((1, heads, 1, 1), -np.inf) if sinks is None else sinks[None, :, None, None]
    top = np.maximum(scores.real.max(-1, keepdims=True), sink.real)
    weights, rest = np.exp(scores - top), np.exp(sink - top)
    total = weights.sum(-1, keepdims=True) + rest
    p, p_sink = weights / total, rest / total

    def backward(dout):
        d = dout.reshape(batch, length, heads, hd)
        dp = np.einsum("bihd,bjhd->bhij", d, vr, optimize=True)
        delta = (dp * p).sum(-1, keepdims=True)
        ds = p * (dp - delta) * scale
        dq = rotate(np.einsum("bhij,bjhd->bihd", ds, kr, optimize=True), cos, -sin)
        dk = rotate(
            np.einsum("bhij,bihd->bjhd", ds, qr, optimize=True).reshape(batch, length, kv, group, hd).sum(3), cos, -sin
        )
        dv = np.einsum("bhij,bihd->bjhd", p, d, optimize=True).reshape(batch, length, kv, group, hd).sum(3)
        gradients = [dq.reshape(q.shape), dk.reshape(k.shape), dv.reshape(k.shape)]
        return gradients if sinks is None else [*gradients, -(p_sink * delta).sum((0, 2, 3))]

    return (np.einsum("bhij,bjhd->bihd", p, vr, optimize=True).reshape(q.shape),), backward


def check(case, rng, precision, shape, *, window=0, sinks=True, documents=1, magnitude=1.0, tolerance=None):
    batch, length, heads, kv, hd = shape
    cos, sin = (1.1 * f(np.outer(np.arange(length), 10.0 ** -np.arange(hd // 2))) for f in (np.cos, np.sin))
    segments = np.sort(rng.integers(0, documents, (batch, length)), 1)
    q, k, v = (magnitude * rng.standard_normal((batch, length, n * hd)) for n in (heads, kv, kv))
    op = Attention(hd**-0.5, window, precision, pack=case.pack)

    def run(q, k, v, cos, sin, segments, *sinks):
        return op(q, k, v, cos, sin, sinks[0] if sinks else None, segments)

    def want(q, k, v, cos, sin, segments, *sinks):
        return oracle(q, k, v, sinks[0] if sinks else None, cos, sin, segments, window, hd**-0.5)

    inputs = [q, k, v, cos, sin, segments, *([rng.standard_normal(heads)] if sinks else [])]
    case.check(run, want, inputs, (0, 1, 2, *((6,) if sinks else ())), tolerance or TOLERANCE[precision])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("sinks", [True, False])
def test_short(case, rng, precision, window, sinks):
    check(case, rng, precision, (2, 37, 4, 2, 10), window=window, sinks=sinks, documents=3)


@pytest.mark.parametrize("window", [0, 1, 128, 600])
def test_longer_than_a_block_of_keys(case, rng, window):
    check(case, rng, "fp32", (1, 700, 2, 1, 8), window=window, documents=2)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 2), (3, 9, 3, 3, 4), (1, 70, 16, 1, 6), (2, 65, 8, 2, 64)])
def test_odd_shapes(case, rng, shape):
    check(case, rng, "fp32", shape)


def test_bf16_over_several_blocks(case, rng):
    check(case, rng, "bf16", (1, 700, 4, 2, 24), documents=4)


def test_large_scores_do_not_overflow(case, rng):
    # scores reach 400, where one unit in the last place of fp32 is 3e-5, and the softmax shows it as it is
    check(case, rng, "fp32", (1, 40, 2, 2, 8), magnitude=12.0, tolerance=2e-4)


def test_documents_do_not_see_each_other(case, rng):
    q, k, v = (rng.standard_normal((1, 12, 8)) for _ in range(3))
    cos, sin = np.ones((12, 4)), np.zeros((12, 4))
    segments = np.array([[0] * 5 + [1] * 7])
    op = Attention(1.0, pack=case.pack)

    def run(q, k, v, cos, sin, segments):
        return op(q, k, v, cos, sin, None, segments)

    (whole,), _ = case.run(run, [q, k, v, cos, sin, segments], [q], (0,))
    alone = [q[:, 5:], k[:, 5:], v[:, 5:], cos[5:], sin[5:], segments[:, 5:]]
    (part,), _ = case.run(run, alone, [q[:, 5:]], (0,))
    np.testing.assert_allclose(whole[:, 5:], part, atol=1e-6)
