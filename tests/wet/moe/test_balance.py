"""Balancing losses against their papers' formulas, the bias rule against a simulation."""

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindmoe.moe.balance import balance_loss, updated_selection_bias
from mindmoe.moe.config import MoeConfig

L, T, E, K = 2, 20, 6, 2


def test_losses():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((L, T, E))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    ids = np.argsort(-logits, -1)[..., :K]
    counts = np.stack([np.bincount(layer.ravel(), minlength=E) for layer in ids])
    z = np.log(np.exp(logits).sum(-1)) ** 2
    aux, z_loss = balance_loss(
        MoeConfig(num_experts=E, num_experts_per_tok=K),
        Tensor(counts, ms.float32),
        Tensor(p.sum(1), ms.float32),
        Tensor(z.sum(1), ms.float32),
        float(T),
    )
    want = np.mean([E * (counts[layer] / (T * K) * p[layer].mean(0)).sum() for layer in range(L)])
    np.testing.assert_allclose(aux.asnumpy(), want, rtol=1e-6)
    np.testing.assert_allclose(z_loss.asnumpy(), z.mean(), rtol=1e-6)


def test_bias_update_balances_a_skewed_router():
    rng = np.random.default_rng(1)
    skew, bias = np.linspace(-1, 1, E), np.zeros(E, np.float32)
    spread = []
    for _ in range(600):
        ids = np.argsort(-(rng.standard_normal((200, E)) + skew + bias), 1)[:, :K]
        counts = np.bincount(ids.ravel(), minlength=E).astype(np.float64)
        spread.append(counts.max() / counts.mean() - 1)
        bias = updated_selection_bias(bias, counts, 1e-2)
        assert abs(bias.mean()) < 1e-6
    assert np.mean(spread[:5]) > 0.5 and np.mean(spread[-50:]) < 0.15
