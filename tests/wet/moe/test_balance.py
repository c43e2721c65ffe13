"""Balancing losses against their papers' formulas, the bias rule against a simulation."""

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindmoe.moe.balance import balance_loss, updated_selection_bias, z_loss
from mindmoe.moe.config import MoeConfig

L, T, E, K = 2, 20, 6, 2


def test_losses():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((L, T, E))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    ids = np.argsort(-logits, -1)[..., :K]
    counts = np.stack([np.bincount(layer.ravel(), minlength=E) for layer in ids])
    z = np.log(np.exp(logits).sum(-1)) ** 2
    moe = MoeConfig(num_experts=E, num_experts_per_tok=K)
    aux = balance_loss(moe, Tensor(counts, ms.float32), Tensor(p.sum(1), ms.float32), float(T), float(T))
    want = np.mean([E * (counts[layer] / (T * K) * p[layer].mean(0)).sum() for layer in range(L)])
    np.testing.assert_allclose(aux.asnumpy(), want, rtol=1e-6)
    np.testing.assert_allclose(z_loss(Tensor(z.sum(1), ms.float32), float(T)).asnumpy(), z.mean(), rtol=1e-6)


def deepseek_loss(scores: np.ndarray, ids: np.ndarray) -> float:
    """Eq. 17-20 of arXiv 2412.19437 for one sequence without its factor, by loops: scores (T, E), ids (T, K)."""
    tokens, total = len(scores), 0.0
    for expert in range(E):
        f = E / (K * tokens) * sum(expert in chosen for chosen in ids)
        p = sum(row[expert] / row.sum() for row in scores) / tokens
        total += f * p
    return total


def test_the_loss_of_sequences_is_that_of_deepseek_averaged_over_them():
    rng, sequences, length = np.random.default_rng(2), 3, 7
    scores = 1 / (1 + np.exp(-rng.standard_normal((L, sequences, length, E))))
    ids = np.argsort(-scores, -1)[..., :K]
    counts = (ids[..., None] == np.arange(E)).sum((2, 3))
    probs = (scores / scores.sum(-1, keepdims=True)).sum(2)
    got = balance_loss(
        MoeConfig(num_experts=E, num_experts_per_tok=K),
        Tensor(counts, ms.float32),
        Tensor(probs, ms.float32),
        float(sequences * length),
        float(length),
    )
    want = [deepseek_loss(scores[layer, row], ids[layer, row]) for layer in range(L) for row in range(sequences)]
    np.testing.assert_allclose(got.asnumpy(), np.mean(want), rtol=1e-6)


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
