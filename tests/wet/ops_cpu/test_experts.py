"""Experts, and their parts, against a loop over experts."""

import numpy as np
import pytest

from mindmoe.ops.cpu.experts import Combine, Experts, Permute

TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}
ALPHA, LIMIT = 1.702, 7.0


def expert(x, w1, b1, w2, b2):
    hidden = x @ w1 + b1
    gate, up = hidden[:, ::2], hidden[:, 1::2]
    g = np.where(gate.real <= LIMIT, gate, LIMIT)
    u = np.where(up.real > LIMIT, LIMIT, np.where(up.real < -LIMIT, -LIMIT, up))
    s = 1 / (1 + np.exp(-ALPHA * g))
    activated = (u + 1) * g * s

    def backward(dy):
        da = dy @ w2.T
        dhidden = np.zeros_like(hidden)
        dhidden[:, ::2] = da * (u + 1) * s * (1 + ALPHA * g * (1 - s)) * (gate.real <= LIMIT)
        dhidden[:, 1::2] = da * g * s * (np.abs(up.real) <= LIMIT)
        return dhidden @ w1.T, x.T @ dhidden, dhidden.sum(0), activated.T @ dy, dy.sum(0)

    return activated @ w2 + b2, backward


def oracle(x, gates, ids, w1, b1, w2, b2):
    y = np.zeros(x.shape, np.result_type(x, gates, w1))
    parts = []
    for e in range(len(w1)):
        token, choice = np.nonzero(ids == e)
        out, back = expert(x[token], w1[e], b1[e], w2[e], b2[e])
        np.add.at(y, token, gates[token, choice][:, None] * out)
        parts.append((token, choice, out, back))

    def backward(dy):
        dx, dgates = np.zeros_like(x), np.zeros_like(gates)
        dweights = [np.zeros_like(w) for w in (w1, b1, w2, b2)]
        for e, (token, choice, out, back) in enumerate(parts):
            dgates[token, choice] = (dy[token] * out).sum(-1)
            drows, *own = back(dy[token] * gates[token, choice][:, None])
            np.add.at(dx, token, drows)
            for total, part in zip(dweights, own, strict=True):
                total[e] = part
        return dx, dgates, *dweights

    return (y,), backward


def inputs(rng, tokens, k, experts, width, inner, spread):
    """Random inputs; the experts' hidden values have about `spread` as deviation, so 4 reaches the clamps."""
    ids = np.argsort(rng.random((tokens, experts)), 1)[:, :k] if k <= experts else rng.integers(0, experts, (tokens, k))
    weights = [(experts, width, 2 * inner), (experts, 2 * inner), (experts, inner, width), (experts, width)]
    w1, b1, w2, b2 = (rng.standard_normal(s) for s in weights)
    return [rng.standard_normal((tokens, width)), rng.random((tokens, k)), ids, w1 * spread * width**-0.5, b1 * 0.1,
            w2 * inner**-0.5, b2]  # fmt: skip


WRT = (0, 1, 3, 4, 5, 6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("tokens", "k", "experts", "width", "inner"), [
    (200, 3, 6, 40, 22), (1, 1, 1, 1, 1), (5, 4, 128, 16, 3), (1300, 2, 2, 33, 17),
    (48, 2, 16, 256, 256)])  # fmt: skip
def test_values_and_gradients(case, rng, precision, tokens, k, experts, width, inner):
    values = inputs(rng, tokens, k, experts, width, inner, 1.0)
    case.check(Experts(precision, pack=case.pack), oracle, values, WRT, TOLERANCE[precision])


def test_clamped_hidden_values(case, rng):
    values = inputs(rng, 150, 2, 4, 30, 20, 4.0)
    case.check(Experts(pack=case.pack), oracle, values, WRT, 1e-5)


def test_dropped_slots_and_idle_experts_give_nothing(case, rng):
    values = inputs(rng, 60, 2, 5, 12, 8, 1.0)
    values[2][::3, 0] = 5  # E: dropped
    values[2][values[2] == 3] = 1  # expert 3 gets no token
    values[2][7] = 5  # a token without any expert
    (y,), gradients = case.run(Experts(pack=case.pack), values, [np.ones((60, 12))], WRT)
    assert not y[7].any() and not gradients[0][7].any() and not gradients[1][7].any()
    assert not any(weight[3].any() for weight in gradients[2:])
    case.check(Experts(pack=case.pack), oracle, values, WRT, 1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_parts_equal_the_whole(case, rng, precision):
    """As dispatchers do: each row goes to one expert with a gate of 1, and the gates come in at the end."""
    values = inputs(rng, 90, 3, 7, 20, 9, 1.0)
    values[2][::4, 1] = 7
    permute, experts, combine = Permute(7, case.pack), Experts(precision, pack=case.pack), Combine(case.pack)
    number = case_tensor(np.sort(values[2].reshape(-1, 1), 0))  # 7 in the rows past the counts
    ones = case_tensor(np.ones(number.shape))

    def parts(x, gates, ids, *weights):
        rows, slot, _ = permute(x, ids)
        return combine(experts(rows, ones, number, *weights), slot, gates)

    case.check(parts, oracle, values, WRT, TOLERANCE[precision])


def test_rows_are_in_order_of_expert_then_token(case, rng):
    ids = np.array([[2, 0], [0, 3], [2, 1], [0, 2]])  # 3 = E is dropped
    x = rng.standard_normal((4, 5))
    permute = Permute(3, case.pack)

    def rows_of(x, ids):
        return permute(x, ids)[0]

    (rows,), (dx,) = case.run(rows_of, [x, ids], [np.ones((8, 5))], (0,))
    np.testing.assert_array_equal(rows, np.concatenate([x[[0, 1, 3, 2, 0, 2, 3]], np.zeros((1, 5))]).astype(np.float32))
    np.testing.assert_array_equal(dx[:, 0], [2, 1, 2, 2])
    _, slot, counts = permute(*(case_tensor(v) for v in (x, ids)))
    np.testing.assert_array_equal(counts.asnumpy(), [3, 1, 3])
    np.testing.assert_array_equal(slot.asnumpy(), [[4, 0], [1, -1], [5, 3], [2, 6]])


def case_tensor(array):
    import mindspore as ms

    return ms.Tensor(array.astype(np.float32 if array.dtype.kind == "f" else np.int32))
