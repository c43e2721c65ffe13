"""Projection and cross-entropy against the full logits."""

import numpy as np
import pytest
from mindspore import Tensor

from mindmoe.ops.cpu.cross_entropy import CrossEntropy, CrossEntropyPart
from mindmoe.ops.reference import cross_entropy as reference

TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}


def oracle(x, w, labels, mask):
    logits = x @ w.T
    top = logits.real.max(-1, keepdims=True)
    lse = top[:, 0] + np.log(np.exp(logits - top).sum(-1))
    rows = np.arange(len(labels))
    valid = (labels >= 0) & (labels < len(w))
    safe = np.where(valid, labels, 0)
    nll = np.where(valid, lse - logits[rows, safe], 0)

    def backward(dsum, dnll):
        d = np.exp(logits - lse[:, None])
        d[rows, safe] -= 1
        d *= ((dsum * mask + dnll) * valid)[:, None]
        return d @ w, d.T @ x

    return ((mask * nll).sum(), nll), backward


def inputs(rng, tokens, width, words):
    labels = rng.integers(-1, words + 1, tokens)  # both ends: outside the vocabulary
    return [rng.standard_normal((tokens, width)), rng.standard_normal((words, width)) * width**-0.5, labels,
            rng.random(tokens)]  # fmt: skip


SHAPES = [(300, 40, 2500), (1, 1, 2), (1100, 8, 1024), (7, 20, 1025)]


def total(*args):
    (value, _), backward = oracle(*args)
    return (value,), lambda dsum: backward(dsum, 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_sum_and_gradients(case, rng, precision, shape):
    case.check(CrossEntropy(precision, case.pack), total, inputs(rng, *shape), (0, 1), TOLERANCE[precision])


def test_large_logits_do_not_overflow(case, rng):
    x, w, labels, mask = inputs(rng, 20, 6, 50)
    case.check(CrossEntropy("fp32", case.pack), total, [60 * x, w, labels, mask], (0, 1), 1e-5)


@pytest.mark.parametrize("kind", ["cpu", "reference"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(300, 40, 2500), (1, 1, 3), (1100, 8, 1026)])
def test_three_parts_of_a_vocabulary_make_the_whole(case, rng, kind, precision, shape):
    x, w, labels, weight = inputs(rng, *shape)
    labels = np.clip(labels, 0, len(w) - 1)
    op = CrossEntropyPart(precision, case.pack) if kind == "cpu" else reference.CrossEntropyPart(precision)
    edges = [0, len(w) // 3, len(w) - 1, len(w)]  # unequal parts, the last of one word
    cuts = [slice(first, last) for first, last in zip(edges[:-1], edges[1:], strict=True)]
    places = [Tensor((labels - cut.start).astype(np.int32)) for cut in cuts]
    tensors = [Tensor(x.astype(np.float32)), *(Tensor(w[cut].astype(np.float32)) for cut in cuts)]
    halves = [op.forward(tensors[0], part, place) for part, place in zip(tensors[1:], places, strict=True)]
    lse = np.logaddexp.reduce([half[0].asnumpy() for half in halves])
    nll = lse - np.sum([half[1].asnumpy() for half in halves], 0)
    (_, wanted), backward = oracle(x, w, labels, weight)
    dx, dw = backward(1.0, 0.0)
    back = [
        op.backward(Tensor(weight.astype(np.float32)), Tensor(lse), tensors[0], part, place)
        for part, place in zip(tensors[1:], places, strict=True)
    ]
    scale = TOLERANCE[precision]
    assert np.abs(nll - wanted).max() <= scale * max(1.0, np.abs(wanted).max())
    assert np.abs(sum(part[0].asnumpy() for part in back) - dx).max() <= scale * np.abs(dx).max()
    assert np.abs(np.concatenate([part[1].asnumpy() for part in back]) - dw).max() <= scale * np.abs(dw).max()
