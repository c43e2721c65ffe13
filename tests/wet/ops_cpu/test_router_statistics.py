"""Sums over tokens against their definitions."""

import numpy as np
import pytest

from mindmoe.ops.cpu.router_statistics import RouterStatistics


def oracle(sigmoid):
    def sums(logits, ids):
        top = logits.real.max(-1, keepdims=True)
        exps = np.exp(logits - top)
        softmax = exps / exps.sum(-1, keepdims=True)
        lse = top[:, 0] + np.log(exps.sum(-1))
        scores = 1 / (1 + np.exp(-logits))
        total = scores.sum(-1, keepdims=True) + 1e-20
        p = scores / total if sigmoid else softmax
        counts = np.array([(ids == expert).sum() for expert in range(logits.shape[1])], np.float64)
        outs = counts, p.sum(0), np.array([(lse * lse).sum()]), np.array([-(p * np.log(p + 1e-20)).sum()])

        def backward(_, dp, dz, __):
            g = dp - (dp * p).sum(-1, keepdims=True)
            through = g * p * (1 - scores) if sigmoid else g * p
            return (through + 2 * dz * lse[:, None] * softmax,)

        return outs, backward

    return sums


def differentiable(op):
    """The entropy is for reports only: without a gradient in the op, and cut off in the oracle's check."""
    return lambda logits, ids: op(logits, ids)[1:3]


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize(("tokens", "experts"), [(1, 1), (300, 6), (130, 33), (64, 128)])
def test_sums_and_gradients(case, rng, sigmoid, tokens, experts):
    logits, ids = 3 * rng.standard_normal((tokens, experts)), rng.integers(0, experts + 1, (tokens, 3))
    op = RouterStatistics(sigmoid, case.pack)

    def want(logits, ids):
        outs, backward = oracle(sigmoid)(logits, ids)
        return outs[1:3], lambda dp, dz: backward(None, dp, dz, None)

    case.check(differentiable(op), want, [logits, ids], (0,), 1e-5)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_counts_and_entropy(case, rng, sigmoid):
    logits, ids = 5 * rng.standard_normal((500, 40)), rng.integers(-1, 41, (500, 2))
    outs, _ = case.run(RouterStatistics(sigmoid, case.pack), [logits, ids],
                       [np.zeros(40), np.zeros(40), np.zeros(1), np.zeros(1)], (0,))  # fmt: skip
    want, _ = oracle(sigmoid)(logits, ids)
    np.testing.assert_array_equal(outs[0], want[0])
    np.testing.assert_allclose(outs[3], want[3], rtol=1e-5)


def test_large_logits_stay_finite(case):
    logits = np.array([[1e4, -1e4, 0.0], [88.0, 90.0, -200.0]])
    outs, (gradient,) = case.run(RouterStatistics(False, case.pack), [logits, np.zeros((2, 1), int)],
                                 [np.zeros(3), np.ones(3), np.ones(1), np.zeros(1)], (0,))  # fmt: skip
    assert all(np.isfinite(out).all() for out in outs) and np.isfinite(gradient).all()
