"""RMSNorm against its definition."""

import numpy as np
import pytest

from mindmoe.ops.cpu.rms_norm import RmsNorm


def oracle(x, weight, eps):
    r = 1 / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps)
    n = x * r

    def backward(dy):
        g = dy * weight
        return r * (g - n * np.mean(g * n, -1, keepdims=True)), (dy * n).reshape(-1, x.shape[-1]).sum(0)

    return (n * weight,), backward


@pytest.mark.parametrize(("shape", "eps"), [((2, 3, 33), 1e-5), ((1, 1), 0.5), ((9000, 17), 1e-5), ((5, 256), 1e-6)])
def test_values_and_gradients(case, rng, shape, eps):
    inputs = [rng.standard_normal(shape), rng.standard_normal(shape[-1])]
    case.check(RmsNorm(eps, pack=case.pack), lambda x, w: oracle(x, w, eps), inputs, (0, 1), 1e-5)


def test_eps_of_each_norm_is_its_own(case, rng):
    x, w = 1e-3 * rng.standard_normal((4, 20)), rng.standard_normal(20)
    first, second = RmsNorm(1e-6, pack=case.pack), RmsNorm(1.0, pack=case.pack)

    def both(x, w):
        return first(x, w), second(x, w)

    def both_oracle(x, w):
        (a, back_a), (b, back_b) = oracle(x, w, 1e-6), oracle(x, w, 1.0)
        return (*a, *b), lambda da, db: [p + q for p, q in zip(back_a(da), back_b(db), strict=True)]

    case.check(both, both_oracle, [x, w], (0, 1), 1e-5)


def test_a_row_of_zeros_stays_finite(case):
    (y,), (dx, dw) = case.run(RmsNorm(pack=case.pack), [np.zeros((2, 8)), np.ones(8)], [np.ones((2, 8))], (0, 1))
    assert not y.any() and not dw.any() and np.isfinite(dx).all()


def test_bf16_storage_is_the_rounded_result(case, rng):
    inputs = [rng.standard_normal((6, 50)), rng.standard_normal(50)]
    op = RmsNorm(1e-5, "bf16", case.pack)

    def norm(x, w):
        return op(x, w)

    case.check_values(norm, lambda x, w: oracle(x, w, 1e-5), inputs, 2**-8)
