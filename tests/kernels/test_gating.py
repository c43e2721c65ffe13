"""moe_gating and its backward against float64 oracles: ids exact, values to float32 rounding."""

import numpy as np
import pytest
from host_model import KernelError, close, garbage, store, value

SOFTMAX_AFTER_TOPK, SOFTMAX, SIGMOID = 0, 1, 2


def scores_of(x, score):
    if score == SOFTMAX:
        e = np.exp(x - x.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)
    return np.exp(-np.logaddexp(0, -x)) if score == SIGMOID else x


def reference(x, bias, topk, score, normalize, groups, topk_groups, scale):
    """float64 weights (T, K) and ids (T, K)."""
    x = np.clip(x.astype(np.float64), -1e30, 1e30)  # infinite logits mask an expert, or force it
    tokens, experts = x.shape
    gates = scores_of(x, score)
    key = gates + (0 if bias is None else bias.astype(np.float64))
    if topk_groups < groups:
        by_group = key.reshape(tokens, groups, -1)
        best = np.sort(by_group, 2)[:, :, -2:].sum(2)
        keep = np.zeros((tokens, groups), bool)
        np.put_along_axis(keep, np.argsort(-best, axis=1, kind="stable")[:, :topk_groups], True, 1)
        key = np.where(np.repeat(keep, experts // groups, 1), key, -np.inf)
    ids = np.argsort(-key, axis=1, kind="stable")[:, :topk]
    w = np.take_along_axis(gates, ids, 1)
    if score == SOFTMAX_AFTER_TOPK:
        w = scores_of(w, SOFTMAX)
    elif normalize:
        w = w / (w.sum(1, keepdims=True) + 1e-20)
    return w * scale, ids


def logits(rng, kind, shape):
    """Multiples of 1/64, so that two logits are equal or clearly different in every score."""
    x = {
        "normal": rng.standard_normal(shape) * 2,
        "ties": rng.integers(-2, 3, shape),
        "wide": rng.standard_normal(shape) * 60,
        "const": np.full(shape, 0.5),
        "masked": rng.standard_normal(shape) * 2,
    }[kind]
    x = (np.round(x * 64) / 64).astype(np.float32)
    if kind == "masked":  # in some rows fewer experts remain than are chosen
        x[rng.random(shape) < rng.random((shape[0], 1))] = -np.inf
        x[::5] = -np.inf
        x[1::5, -1] = np.inf
    return x


def deciding_bias(rng, experts, groups):
    """A bias that decides by itself between experts and between groups, whose gates may be equal in float32."""
    while True:
        bias = rng.permutation(experts) * 1.5  # gates lie in [0, 1]
        best = np.sort(np.sort(bias.reshape(groups, -1), 1)[:, -2:].sum(1))
        if groups == 1 or np.diff(best).min() > 2:
            return bias.astype(np.float32)


def launch(run, x, bias, topk, score, normalize, groups, topk_groups, scale, bf16, cores, seed):
    w, ids = garbage((len(x), topk)), np.full((len(x), topk), -7, np.int32)
    run(
        "moe_gating",
        [store(x, bf16), bias],
        [w, ids],
        [*x.shape, topk, score, normalize, groups, topk_groups],
        [scale],
        bf16=bf16,
        cores=cores,
        seed=seed,
    )
    return w, ids


# rows, experts, topk, score, normalize, groups, topk_groups, bias, cores
CASES = [
    (1, 128, 4, SOFTMAX_AFTER_TOPK, 1, 1, 1, False, 1),  # gpt-oss-120b, one token
    (67, 32, 4, SOFTMAX_AFTER_TOPK, 1, 1, 1, False, 3),  # gpt-oss-20b, tails
    (70, 128, 4, SOFTMAX_AFTER_TOPK, 1, 1, 1, True, 2),
    (5, 8, 2, SOFTMAX, 1, 1, 1, False, 48),  # more cores than work
    (90, 60, 6, SOFTMAX, 0, 1, 1, True, 1),  # experts that fill no block; two tiles
    (17, 64, 8, SOFTMAX, 1, 1, 1, False, 2),
    (41, 256, 8, SIGMOID, 1, 8, 4, True, 2),  # DeepSeek-V3
    (26, 256, 1, SIGMOID, 0, 1, 1, False, 1),  # two levels of merging
    (33, 40, 8, SIGMOID, 1, 4, 2, True, 3),  # groups of 10
    (128, 40, 4, SOFTMAX_AFTER_TOPK, 1, 1, 1, False, 1),  # two whole tiles with gaps behind the experts
    (20, 160, 6, SOFTMAX, 0, 8, 3, False, 1),  # DeepSeek-V2
    (9, 3, 3, SOFTMAX_AFTER_TOPK, 1, 1, 1, False, 2),  # every expert
]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", ["normal", "ties", "wide", "const", "masked"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gating_equals_the_float64_oracle(driver, case, kind, bf16):
    rows, experts, topk, score, normalize, groups, topk_groups, has_bias, cores = case
    rng = np.random.default_rng(rows)
    x = logits(rng, kind, (rows, experts))
    if score != SOFTMAX_AFTER_TOPK and kind == "wide":
        x = np.clip(x, -15, 15)  # beyond that distinct logits have equal float32 gates
    if score == SOFTMAX and kind == "masked":
        x[:, 0] = np.where(np.isinf(x).all(1), 0, x[:, 0])  # there is no softmax over nothing
    x = value(store(x, bf16), bf16)
    bias = (rng.integers(-8, 8, experts) / 4).astype(np.float32) if has_bias else None
    if score != SOFTMAX_AFTER_TOPK and has_bias:
        bias = deciding_bias(rng, experts, groups)
    w, ids = launch(driver("gating"), x, bias, topk, score, normalize, groups, topk_groups, 1.25, bf16, cores, rows)
    want_w, want_ids = reference(x, bias, topk, score, normalize, groups, topk_groups, 1.25)
    np.testing.assert_array_equal(ids, want_ids)
    close("moe_gating", w, want_w, bf16, atol=3e-6)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("score", [SOFTMAX_AFTER_TOPK, SOFTMAX, SIGMOID])
@pytest.mark.parametrize("experts", [1, 2, 7, 8, 31, 32, 33, 64, 100, 128, 200, 255, 256])
def test_every_topk_of_every_kind_of_row(driver, experts, score, bf16):
    rng = np.random.default_rng(experts)
    x = value(store(logits(rng, "normal", (3, experts)), bf16), bf16)
    for topk in range(1, min(8, experts) + 1):
        w, ids = launch(driver("gating"), x, None, topk, score, 1, 1, 1, 1.0, bf16, 1, topk)
        want_w, want_ids = reference(x, None, topk, score, 1, 1, 1, 1.0)
        np.testing.assert_array_equal(ids, want_ids)
        close("moe_gating", w, want_w, bf16, atol=3e-6)


def weights_at(x, ids, score, normalize, scale):
    """float64 weights (T, K) of a fixed choice."""
    w = np.take_along_axis(scores_of(x, score), ids, 1)
    if score == SOFTMAX_AFTER_TOPK:
        w = scores_of(w, SOFTMAX)
    elif normalize:
        w = w / (w.sum(1, keepdims=True) + 1e-20)
    return w * scale


def numeric_gradient(x, ids, grad, score, normalize, scale):
    """Central differences of sum(grad * weights) in float64, all rows at once: rows are independent."""
    step, out = 1e-5, np.zeros_like(x)
    for e in range(x.shape[1]):
        losses = []
        for sign in (1, -1):
            moved = x.copy()
            moved[:, e] += sign * step
            losses.append((weights_at(moved, ids, score, normalize, scale) * grad).sum(1))
        out[:, e] = (losses[0] - losses[1]) / (2 * step)
    return out


# rows, experts, topk, score, normalize, cores
GRAD_CASES = [
    (1, 128, 4, SOFTMAX_AFTER_TOPK, 1, 1),
    (67, 32, 4, SOFTMAX_AFTER_TOPK, 1, 3),
    (5, 8, 2, SOFTMAX, 1, 48),
    (150, 60, 6, SOFTMAX, 0, 1),
    (41, 256, 8, SIGMOID, 1, 2),
    (26, 256, 1, SIGMOID, 0, 1),
    (19, 3, 3, SOFTMAX, 0, 2),
    (70, 128, 8, SOFTMAX, 0, 2),
    (16, 40, 8, SOFTMAX_AFTER_TOPK, 1, 1),  # a whole tile with gaps behind the experts, every lane of a block
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("case", GRAD_CASES, ids=str)
def test_backward_equals_finite_differences(driver, case, bf16, masked):
    rows, experts, topk, score, normalize, cores = case
    rng = np.random.default_rng(rows)
    x = logits(rng, "normal", (rows, experts))
    ids = np.ascontiguousarray(np.argsort(rng.random((rows, experts)), 1)[:, :topk], np.int32)
    grad = rng.standard_normal((rows, topk)).astype(np.float32)
    if masked:  # chosen nevertheless, beside one that is not
        x[rng.random(x.shape) < 0.5] = -np.inf
        x[::2, 0] = 200  # if not chosen it may not count, though the unused lanes of a row's ids point to it
        x[np.arange(rows), ids[:, 0]] = 0.5
        if score == SIGMOID:
            x[-1] = -np.inf  # all sigmoids underflow
    x = value(store(x, bf16), bf16)
    out = garbage(x.shape, bf16)
    driver("gating")(
        "moe_gating_grad",
        [store(x, bf16), ids, grad],
        [out],
        [rows, experts, topk, score, normalize, 1, 1],
        [1.25],
        bf16=bf16,
        cores=cores,
        seed=rows,
    )
    want = numeric_gradient(x.astype(np.float64), ids, grad.astype(np.float64), score, normalize, 1.25)
    close("moe_gating_grad", value(out, bf16), want, bf16, rtol=4e-3 if bf16 else 0, atol=3e-6)


@pytest.mark.parametrize("logit", [-np.inf, np.inf])
@pytest.mark.parametrize("bf16", [False, True])
def test_backward_of_infinite_logits_is_that_of_equal_ones(driver, bf16, logit):
    x, ids = np.full((1, 32), logit, np.float32), np.array([[31, 0]], np.int32)
    grad, out = np.array([[3, 1]], np.float32), garbage(x.shape, bf16)
    driver("gating")(
        "moe_gating_grad", [store(x, bf16), ids, grad], [out], [1, 32, 2, SOFTMAX_AFTER_TOPK, 1, 1, 1], [1.0], bf16=bf16
    )
    want = np.zeros(x.shape)
    want[0, ids[0]] = 0.5, -0.5
    np.testing.assert_array_equal(value(out, bf16), want)


@pytest.mark.parametrize(
    "ints, rule",
    [
        ([0, 8, 2, 0, 1, 1, 1], "tokens"),
        ([4, 257, 2, 0, 1, 1, 1], "number of experts"),
        ([4, 8, 9, 0, 1, 1, 1], "top-k"),
        ([4, 8, 2, 3, 1, 1, 1], "score"),
        ([4, 9, 2, 0, 1, 3, 1], "groups"),
        ([4, 9, 2, 0, 1, 2, 1], "divide"),
        ([4, 128, 2, 0, 1, 2, 1], "2 to 32"),
        ([4, 8, 5, 0, 1, 2, 1], "top-k experts"),
    ],
)
def test_the_tiling_refuses_with_the_rule(driver, ints, rule):
    with pytest.raises(KernelError, match=rule):
        driver("gating")("moe_gating", [None, None], [], ints, [1.0])
