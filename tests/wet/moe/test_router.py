"""Every selection rule against a loop over tokens in NumPy."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindmoe.moe.config import DispatchConfig, MoeConfig
from mindmoe.moe.dispatch.capacity import build_capacity_limit, capacity_rows
from mindmoe.moe.router.topk import TopK

T, E, K = 30, 12, 3


def softmax(x: np.ndarray) -> np.ndarray:
    p = np.exp(x - x.max())
    return p / p.sum()


def oracle(logits: np.ndarray, bias: np.ndarray, router: TopK) -> tuple[list[set[int]], np.ndarray]:
    """The chosen set of each token and the dense (T, E) gates."""
    chosen_sets, gates = [], np.zeros((T, E))
    for t, row in enumerate(logits):
        scores = {"softmax_after_topk": row, "softmax": softmax(row), "sigmoid": 1 / (1 + np.exp(-row))}[router.score]
        ranking = scores + bias
        if router.num_groups > 1:
            groups = ranking.reshape(router.num_groups, -1)
            best = np.argsort(-np.sort(groups, 1)[:, -2:].sum(1))[: router.topk_groups]
            ranking = np.where(np.isin(np.arange(E) // groups.shape[1], best), ranking, -np.inf)
        chosen = np.argsort(-ranking)[:K]
        values = scores[chosen]
        if router.score == "softmax_after_topk":
            values = softmax(values)
        elif router.norm_topk:
            values = values / values.sum()
        gates[t, chosen] = values * router.route_scale
        chosen_sets.append(set(chosen))
    return chosen_sets, gates


@pytest.mark.parametrize("score", ["softmax_after_topk", "softmax", "sigmoid"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"num_groups": 4, "topk_groups": 2},
        {"norm_topk": False},
        {"route_scale": 2.5},
        {"num_groups": 6, "topk_groups": 3},
    ],
)
@pytest.mark.parametrize("biased", [False, True])
def test_selection(score, more, biased):
    rng = np.random.default_rng(0)
    logits, bias = rng.standard_normal((T, E)), rng.standard_normal(E) * biased
    moe = MoeConfig(num_experts=E, num_experts_per_tok=K, router=TopK(score=score, **more))
    weights = {"selection_bias": Tensor(bias, ms.float32)} if biased else {}
    found = moe.router.build(moe).route(Tensor(logits, ms.float32), weights, {})
    gates, ids, probs = found["gates"], found["ids"], found["probs"]
    want_sets, want_gates = oracle(logits, bias, moe.router)
    assert [set(row) for row in ids.asnumpy()] == want_sets
    dense = np.zeros((T, E))
    np.put_along_axis(dense, ids.asnumpy().astype(int), gates.asnumpy(), 1)
    np.testing.assert_allclose(dense, want_gates, rtol=5e-6, atol=1e-6)  # the fp32 exponential is good to 2e-6
    np.testing.assert_allclose(probs.asnumpy().sum(1), 1.0, atol=1e-6)


@pytest.mark.parametrize("score", ["softmax_after_topk", "softmax", "sigmoid"])
def test_gradient_reaches_chosen_logits_only_through_gates(score):
    rng = np.random.default_rng(1)
    logits, weight = rng.standard_normal((T, E)), rng.standard_normal((T, K))
    moe = MoeConfig(num_experts=E, num_experts_per_tok=K, router=TopK(score=score))
    route = moe.router.build(moe).route

    def loss(x: Tensor, bias: Tensor) -> Tensor:
        return (route(x, {"selection_bias": bias}, {})["gates"] * Tensor(weight, ms.float32)).sum()

    dx, dbias = ms.grad(loss, (0, 1))(Tensor(logits, ms.float32), Tensor(np.zeros(E), ms.float32))
    assert not dbias.asnumpy().any()
    ids = route(Tensor(logits, ms.float32), {}, {})["ids"].asnumpy().astype(int)
    direction, step = rng.standard_normal((T, E)), 1e-6

    def value(x: np.ndarray) -> float:
        dense = oracle(x, np.zeros(E), moe.router)[1]
        return (np.take_along_axis(dense, ids, 1) * weight).sum()

    want = (value(logits + step * direction) - value(logits - step * direction)) / (2 * step)
    assert float((dx.asnumpy() * direction).sum()) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("factor", [0.5, 1.0, 20.0])
def test_capacity_drops_the_lowest_gates_of_an_expert(factor):
    rng = np.random.default_rng(2)
    moe = MoeConfig(
        num_experts=E, num_experts_per_tok=K, dispatch=DispatchConfig(kind="capacity", capacity_factor=factor)
    )
    gates, ids = rng.random((T, K)).astype(np.float32), np.argsort(rng.random((T, E)), 1)[:, :K].astype(np.int32)
    got = build_capacity_limit(moe, T)(Tensor(gates), Tensor(ids)).asnumpy()
    room = capacity_rows(moe, T)
    for expert in range(E):
        at = np.argwhere(ids == expert)
        best = sorted(at.tolist(), key=lambda place: -gates[tuple(place)])[:room]
        assert sorted(np.argwhere(got == expert).tolist()) == sorted(best)
    assert ((got == ids) | (got == E)).all()


@pytest.mark.parametrize(("factor", "rows"), [(0.001, 1), (1.0, 4), (1.25, 5), (2.0, 8), (1e4, 8)])
def test_an_expert_has_room_for_all_tokens_at_most(factor, rows):
    moe = MoeConfig(num_experts=4, num_experts_per_tok=2, dispatch=DispatchConfig(capacity_factor=factor))
    assert capacity_rows(moe, 8) == rows


def test_experts_that_choose_use_most_of_their_places():
    """A token keeps at most k_max of the experts that took it, so some places stay empty, and no token has more."""
    moe = MoeConfig.model_validate(
        {"num_experts": 16, "num_experts_per_tok": 4, "router": {"type": "expert_choice", "k_max": 8}}
    )
    logits = Tensor(1.5 * np.random.default_rng(3).standard_normal((1024, 16)), ms.float32)
    used = (moe.router.build(moe).route(logits, {}, {})["ids"].asnumpy() < 16).sum(1)
    assert 0.8 * 4 < used.mean() <= 4 and used.max() == 8
