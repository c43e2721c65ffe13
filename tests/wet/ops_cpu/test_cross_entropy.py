"""Projection and cross-entropy against the full logits."""

import numpy as np
import pytest

from mindmoe.ops.cpu.cross_entropy import CrossEntropy

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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_made_in_the_backward_pass(case, rng, precision, shape):
    op = CrossEntropy(precision, "backward", case.pack)
    case.check(op, oracle, inputs(rng, *shape), (0, 1), TOLERANCE[precision])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_made_in_the_forward_pass(case, rng, precision, shape):
    values = inputs(rng, *shape)
    op = CrossEntropy(precision, "forward", case.pack)

    def total(*args):
        return op(*args)[0]

    def total_oracle(*args):
        outs, backward = oracle(*args)
        return outs[:1], lambda dsum: backward(dsum, 0)

    case.check(total, total_oracle, values, (0, 1), TOLERANCE[precision])


def test_large_logits_do_not_overflow(case, rng):
    x, w, labels, mask = inputs(rng, 20, 6, 50)
    case.check(CrossEntropy("fp32", "backward", case.pack), oracle, [60 * x, w, labels, mask], (0, 1), 1e-5)


def test_kind_of_gradient_is_checked(case):
    with pytest.raises(ValueError, match="gradient='both'"):
        CrossEntropy("fp32", "both", case.pack)
