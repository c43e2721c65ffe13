"""Selection of experts against sorting, in fp32 so that ties and orders are the same."""

import numpy as np
import pytest

from mindmoe.ops.cpu.routing import Route


def choose(scores, bias, k, groups, topk_groups):
    """Ids (T, K) of the largest score + bias, ties to the lowest number."""
    choice = (scores + bias).real
    if groups > 1:
        grouped = choice.reshape(len(choice), groups, -1)
        worth = np.sort(grouped, -1)[..., -2:].sum(-1)
        closed = np.ones_like(worth, bool)
        best = np.argsort(-worth, axis=-1, kind="stable")[:, :topk_groups]
        np.put_along_axis(closed, best, False, -1)
        choice = np.where(closed[..., None], -np.inf, grouped).reshape(choice.shape)
    return np.argsort(-choice, axis=-1, kind="stable")[:, :k]


def oracle(logits, bias, k, score, norm_topk, scale, groups=1, topk_groups=1):
    scores = logits
    if score == "softmax":
        e = np.exp(logits - logits.real.max(-1, keepdims=True))
        scores = e / e.sum(-1, keepdims=True)
    if score == "sigmoid":
        scores = 1 / (1 + np.exp(-logits))
    ids = choose(scores, bias, k, groups, topk_groups)
    chosen = np.take_along_axis(scores, ids, -1)
    gates = chosen
    if score == "softmax_after_topk":
        e = np.exp(chosen - chosen.real.max(-1, keepdims=True))
        gates = e / e.sum(-1, keepdims=True)
    elif norm_topk:
        gates = chosen / chosen.sum(-1, keepdims=True)

    def backward(dgates):
        d = dgates * scale
        if score == "softmax_after_topk":
            d = gates * (d - (d * gates).sum(-1, keepdims=True))
        elif norm_topk:
            d = (d - (d * gates).sum(-1, keepdims=True)) / chosen.sum(-1, keepdims=True)
        dscores = np.zeros_like(logits)
        np.put_along_axis(dscores, ids, d, -1)
        if score == "softmax":
            dscores = scores * (dscores - (dscores * scores).sum(-1, keepdims=True))
        return (dscores * scores * (1 - scores) if score == "sigmoid" else dscores,)

    return gates * scale, ids, backward


@pytest.mark.parametrize(("experts", "k", "groups", "topk_groups", "norm_topk"), [
    (7, 3, 1, 1, True), (32, 4, 8, 3, False), (6, 2, 6, 2, True), (2, 2, 1, 1, False)])  # fmt: skip
@pytest.mark.parametrize("score", ["softmax_after_topk", "softmax", "sigmoid"])
def test_gates_and_gradients(case, rng, score, norm_topk, experts, k, groups, topk_groups):
    logits, bias = rng.standard_normal((150, experts)), 0.1 * rng.standard_normal(experts)
    op = Route(k, score, norm_topk, 2.5, groups, topk_groups, case.pack)

    def gates(logits, bias):
        return op(logits, bias)[0]

    def gates_oracle(logits, bias):
        want, _, backward = oracle(logits, bias, k, score, norm_topk, 2.5, groups, topk_groups)
        return (want,), backward

    case.check(gates, gates_oracle, [logits, bias], (0,), 1e-5)


@pytest.mark.parametrize(("groups", "topk_groups"), [(1, 1), (4, 2)])
def test_ties_go_to_the_lowest_number(case, rng, groups, topk_groups):
    logits, bias = rng.integers(-2, 3, (200, 16)).astype(float), rng.integers(-1, 2, 16).astype(float)
    op = Route(4, groups=groups, topk_groups=topk_groups, pack=case.pack)
    outs, _ = case.run(op, [logits, bias], [np.ones((200, 4)), np.zeros((200, 4))], (0,))
    np.testing.assert_array_equal(outs[1], choose(logits, bias, 4, groups, topk_groups))
    assert outs[1].dtype == np.int32


def test_bias_chooses_but_does_not_weigh(case, rng):
    logits, bias = rng.standard_normal((20, 6)), np.array([0, 0, 9.0, 0, 0, 9.0])
    outs, _ = case.run(Route(2, "sigmoid", pack=case.pack), [logits, bias], [np.ones((20, 2)), np.ones((20, 2))], (0,))
    assert set(outs[1].ravel()) == {2, 5}
    np.testing.assert_allclose(outs[0].sum(1), 1.0, rtol=1e-6)
