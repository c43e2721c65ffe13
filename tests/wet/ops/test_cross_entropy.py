"""Projection and cross-entropy against float64, with their gradients in closed form."""

import mindspore as ms
import numpy as np
from each_sibling import op_shape
from mindspore import Tensor

from mindmoe.ops.reference.cross_entropy import build_cross_entropy


def test_sum_and_gradients():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((9, 5)), rng.standard_normal((13, 5))
    labels, mask = rng.integers(0, 13, 9), (rng.random(9) < 0.6).astype(float)
    logits = x @ w.T
    log_sum = np.log(np.exp(logits).sum(1))
    want = ((log_sum - logits[np.arange(9), labels]) * mask).sum()
    d = (np.exp(logits - log_sum[:, None]) - np.eye(13)[labels]) * mask[:, None]
    run = build_cross_entropy(op_shape())
    args = (Tensor(x, ms.float32), Tensor(w, ms.float32), Tensor(labels, ms.int32), Tensor(mask, ms.float32))
    got, (dx, dw) = ms.value_and_grad(run, (0, 1))(*args)
    np.testing.assert_allclose(got.asnumpy(), want, rtol=1e-6)
    np.testing.assert_allclose(dx.asnumpy(), d @ w, atol=1e-5)
    np.testing.assert_allclose(dw.asnumpy(), d.T @ x, atol=1e-5)


def test_large_logits_stay_finite():
    x = Tensor(np.full((2, 3), 100.0, np.float32))
    w = Tensor(np.float32([[1, 1, 1], [-1, -1, -1]]))
    labels, mask = Tensor(np.int32([0, 1])), Tensor(np.ones(2, np.float32))
    assert build_cross_entropy(op_shape())(x, w, labels, mask).asnumpy() == 600.0
