"""moe_capacity and moe_permute exactly, moe_combine and its backward to rounding, against NumPy."""

import numpy as np
import pytest
from host_model import KernelError, close, garbage, store, value


def placement(ids, experts, capacity):
    """slot (T*K,) and counts (E,) of a stable counting sort; pairs beyond the capacity get -1."""
    flat = np.where((ids >= 0) & (ids < experts), ids, -1).ravel()
    slot = np.full(flat.size, -1)
    counts = np.zeros(experts, np.int64)
    totals = np.bincount(flat[flat >= 0], minlength=experts)
    start = np.arange(experts) * capacity if capacity else np.cumsum(totals) - totals
    for i, e in enumerate(flat):
        if e >= 0 and (not capacity or counts[e] < capacity):
            slot[i] = start[e] + counts[e]
            counts[e] += 1
    return slot.reshape(ids.shape), counts


def choices(rng, tokens, topk, experts, kind):
    """Distinct experts per token; `skewed` leaves experts empty, `dropped` sends pairs nowhere."""
    order = np.argsort(rng.random((tokens, experts)) + (np.arange(experts) / 4 if kind == "skewed" else 0), axis=1)
    ids = np.ascontiguousarray(order[:, :topk], np.int32)
    if kind == "dropped":
        ids[rng.random(ids.shape) < 0.3] = -1
        ids[rng.random(ids.shape) < 0.2] = experts
    if kind == "nowhere":
        ids[:] = -1
    return ids


def permute(run, x, ids, experts, capacity, bf16=False, cores=3, seed=0):
    rows = experts * capacity if capacity else ids.size
    y, slot = garbage((rows, x.shape[1]), bf16), np.full(ids.shape, -9, np.int32)
    counts = np.full(experts, -9, np.int32)
    run(
        "moe_permute",
        [store(x, bf16), ids],
        [y, slot, counts],
        [*ids.shape, experts, x.shape[1], capacity],
        bf16=bf16,
        cores=cores,
        seed=seed,
    )
    return value(y, bf16), slot, counts


# tokens, topk, experts, hidden, capacity, kind, bf16, cores
CASES = [
    (1, 1, 1, 1, 0, "even", False, 1),
    (5, 2, 8, 16, 0, "even", True, 48),  # more cores than pairs
    (200, 4, 128, 40, 0, "skewed", True, 4),  # empty experts
    (900, 4, 32, 7, 0, "even", False, 1),  # two chunks, rows that fill no block
    (60, 4, 12, 33, 6, "skewed", True, 5),  # capacity drops
    (33, 1, 8, 16, 2, "even", False, 7),
    (50, 8, 64, 16, 0, "dropped", False, 3),
    (20, 2, 4, 24, 9, "nowhere", True, 2),  # everything dropped
    (3, 4, 128, 2880, 0, "even", True, 2),  # gpt-oss row
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_permute_is_a_stable_counting_sort(driver, case):
    tokens, topk, experts, hidden, capacity, kind, bf16, cores = case
    rng = np.random.default_rng(tokens)
    x = value(store(rng.standard_normal((tokens, hidden)), bf16), bf16)
    ids = choices(rng, tokens, topk, experts, kind)
    y, slot, counts = permute(driver("permute"), x, ids, experts, capacity, bf16, cores, tokens)
    want_slot, want_counts = placement(ids, experts, capacity)
    want = np.zeros_like(y)
    want[want_slot[want_slot >= 0]] = x[np.nonzero(want_slot >= 0)[0]]
    np.testing.assert_array_equal(slot, want_slot)
    np.testing.assert_array_equal(counts, want_counts)
    np.testing.assert_array_equal(y, want)


# tokens, topk, experts, capacity, kind of weight, cores
DROPS = [
    (1, 1, 1, 1, "distinct", 1),
    (40, 4, 8, 7, "distinct", 3),
    (40, 4, 8, 7, "ties", 3),
    (50, 2, 4, 1, "const", 48),
    (30, 2, 64, 100, "distinct", 2),
    (1200, 4, 3, 700, "ties", 2),
    (25, 2, 6, 3, "zero", 4),
    (1100, 4, 3, 600, "distinct", 1),  # two chunks on one core
]


@pytest.mark.parametrize("case", DROPS, ids=str)
def test_capacity_drops_the_lowest_weights_first(driver, case):
    tokens, topk, experts, capacity, kind, cores = case
    rng = np.random.default_rng(tokens)
    ids = np.ascontiguousarray(rng.integers(-1, experts + 1, (tokens, topk)), np.int32)
    weights = {
        "distinct": rng.random(ids.shape),
        "ties": rng.integers(1, 4, ids.shape) / 4,
        "const": np.ones(ids.shape),
        "zero": np.zeros(ids.shape),
    }[kind].astype(np.float32)
    kept = np.full(ids.shape, -9, np.int32)
    driver("permute")(
        "moe_capacity", [ids, weights], [kept], [tokens, topk, experts, 1, capacity], cores=cores, seed=tokens
    )
    want = np.full(ids.size, experts)
    for e in range(experts):
        mine = np.nonzero(ids.ravel() == e)[0]
        best = mine[np.argsort(-weights.ravel()[mine], kind="stable")][:capacity]
        want[best] = e
    np.testing.assert_array_equal(kept.ravel(), want)


def test_capacity_drops_the_first_pair_where_it_weighs_least(driver):
    """The pairs fill one chunk exactly."""
    ids, weights = np.zeros((8, 1), np.int32), np.arange(1, 9, dtype=np.float32).reshape(8, 1)
    kept = np.full(ids.shape, -9, np.int32)
    driver("permute")("moe_capacity", [ids, weights], [kept], [8, 1, 1, 1, 7], cores=1)
    np.testing.assert_array_equal(kept.ravel(), [1] + [0] * 7)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_combine_sums_the_chosen_rows(driver, case, weighted):
    tokens, topk, experts, hidden, capacity, kind, bf16, cores = case
    rng = np.random.default_rng(tokens)
    slot, _ = placement(choices(rng, tokens, topk, experts, kind), experts, capacity)
    y = value(store(rng.standard_normal((experts * capacity or tokens * topk, hidden)), bf16), bf16)
    w = rng.random((tokens, topk)).astype(np.float32) if weighted else None
    out = garbage((tokens, hidden), bf16)
    driver("permute")(
        "moe_combine",
        [store(y, bf16), slot.astype(np.int32), w],
        [out],
        [tokens, topk, experts, hidden, capacity],
        bf16=bf16,
        cores=cores,
        seed=tokens,
    )
    gates = np.where(slot >= 0, 1.0 if w is None else w.astype(np.float64), 0.0)
    want = np.einsum("tk,tkd->td", gates, y.astype(np.float64)[slot])
    close("moe_combine", value(out, bf16), want, bf16, rtol=4e-3 if bf16 else 0, atol=2e-2 if bf16 else 3e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_combine_grad_equals_the_float64_oracle(driver, case):
    tokens, topk, experts, hidden, capacity, kind, bf16, cores = case
    rng = np.random.default_rng(tokens)
    ids = choices(rng, tokens, topk, experts, kind)
    slot, counts = placement(ids, experts, capacity)
    rows = experts * capacity or tokens * topk
    y = value(store(rng.standard_normal((rows, hidden)), bf16), bf16)
    grad = value(store(rng.standard_normal((tokens, hidden)), bf16), bf16)
    w = rng.random((tokens, topk)).astype(np.float32)
    grad_y, grad_w = garbage((rows, hidden), bf16), garbage((tokens, topk))
    driver("permute")(
        "moe_combine_grad",
        [store(grad, bf16), store(y, bf16), slot.astype(np.int32), w, counts.astype(np.int32)],
        [grad_y, grad_w],
        [tokens, topk, experts, hidden, capacity],
        bf16=bf16,
        cores=cores,
        seed=tokens,
    )
    want_y = np.zeros((rows, hidden))
    t, k = np.nonzero(slot >= 0)
    want_y[slot[t, k]] = w[t, k, None].astype(np.float64) * grad[t]
    want_w = np.where(slot >= 0, np.einsum("td,tkd->tk", grad.astype(np.float64), y.astype(np.float64)[slot]), 0)
    tolerance = {"rtol": 4e-3, "atol": 1e-30} if bf16 else {"atol": 1e-6}
    close("moe_combine_grad", value(grad_y, bf16), want_y, bf16, **tolerance)
    close("moe_combine_grad, weights", grad_w, want_w, bf16, rtol=1e-6, atol=2e-6 * np.sqrt(hidden))


def test_unweighted_combine_is_the_backward_of_permute(driver):
    """<permute(x), g> = <x, combine(g)>: the defining property of a backward."""
    rng = np.random.default_rng(5)
    x, ids = rng.standard_normal((40, 24)).astype(np.float32), choices(rng, 40, 3, 16, "dropped")
    y, slot, _ = permute(driver("permute"), x, ids, 16, 0)
    g = rng.standard_normal(y.shape).astype(np.float32)
    back = garbage(x.shape)
    driver("permute")("moe_combine", [g, slot, None], [back], [40, 3, 16, 24, 0])
    assert np.isclose(np.vdot(y.astype(np.float64), g), np.vdot(x.astype(np.float64), back), rtol=1e-6)


@pytest.mark.parametrize(
    "ints, rule",
    [
        ([0, 1, 1, 1, 0], "positive"),
        ([1, 1, 1025, 1, 0], "experts"),
        ([1, 1, 1, 8193, 0], "hidden"),
        ([1, 1, 1024, 1, 1 << 22], "capacity"),
    ],
)
@pytest.mark.parametrize("kernel", ["moe_permute", "moe_combine", "moe_combine_grad"])
def test_the_tiling_refuses_with_the_rule(driver, kernel, ints, rule):
    with pytest.raises(KernelError, match=rule):
        driver("permute")(kernel, [None] * 5, [], ints, bf16=True)
