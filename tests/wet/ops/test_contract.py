"""One contract for every sibling of an op: signatures, and outputs and gradients in graph and PyNative.

The reference is held to float64, the others to the reference, and those that move rows to float64 as well. The Ascend C
kernels take part twice: as installed on a card, which skips where there is none, and on the host model, where the
cells, their backward passes, op_host's tiling and the kernel sources are the ones that a card runs.
"""

import inspect
from typing import get_args, get_type_hints

import mindspore as ms
import numpy as np
import pytest
from each_sibling import (
    ALPHA,
    HD,
    KV,
    LIMIT,
    WINDOW,
    B,
    D,
    E,
    F,
    H,
    K,
    S,
    V,
    ascend_pack,
    op_shape,
    ops_of,
    run,
    tensor,
)
from mindspore import Parameter, ParameterTuple, Tensor, nn

from mindmoe.ops.ascend import routing as ascend_routing
from mindmoe.ops.contract import AdamWOp, CrossEntropyPartOp, OpSet
from mindmoe.ops.cpu import routing as cpu_routing
from mindmoe.ops.select import OPS, builders, reference_ops

OTHERS = ["cpu", "ascend on host model", "ascend on card"]
SIBLINGS = ["reference", *OTHERS]
BY_HOST = {"cache_dtype", "arrive", "wait"}  # nothing that is called with tensors and returns them
ALONE = {"router", "cached_attention", "adamw"}  # equal the reference in a test of their own


def own(siblings, without):
    """Siblings with the ops that they have."""
    return [(one, op) for one in siblings for op in sorted(builders(one.split(" on ")[0])) if op not in without]


@pytest.fixture(params=SIBLINGS)
def sibling(request):
    return request.param


def parameters_of(call):
    """Names, kinds and defaults of what a function, the `construct` of a cell, or a method takes."""
    call = call.construct if isinstance(call, nn.Cell) else call
    found = inspect.signature(call).parameters.values()
    return [(p.name, p.kind, p.default) for p in found if p.name != "self"]


def test_every_op_has_a_reference():
    assert set(builders("reference")) == OPS - {"router"}  # the layer composes routers of plain ops
    assert {"router", "linear", "expert_ffn"} <= set(builders("cpu"))
    assert {"attention", "swiglu", "permute", "combine"} == set(builders("ascend"))


@pytest.mark.parametrize(("one", "op"), own(SIBLINGS, BY_HOST))
def test_signatures_are_the_contract(one, op):
    declared, found = get_type_hints(OpSet)[op], getattr(ops_of(one, op_shape()), op)
    if op == "adamw":
        assert parameters_of(found) == parameters_of(declared.__call__)
        declared, found = AdamWOp, found([True], beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
    elif get_args(declared):  # by a number, or optional
        by_number = get_args(declared)[0] == [int]
        declared, found = get_args(declared)[1 if by_number else 0], found(2) if by_number else found
    for method in ("forward", "backward") if declared is CrossEntropyPartOp else ("__call__",):
        call = getattr(found, method) if declared is CrossEntropyPartOp else found
        assert parameters_of(call) == parameters_of(getattr(declared, method))


def example(op, rng):
    """How an op is taken from a set, its inputs, the shapes of its outputs with a gradient, and the inputs with one."""

    def normal(*dims):
        return rng.standard_normal(dims)

    match op:
        case "embedding":
            return lambda ops: ops.embedding, [rng.integers(0, V, (B, S)), normal(V, D)], [(B, S, D)], (1,)
        case "linear":
            return lambda ops: ops.linear, [normal(B, S, D), normal(F, D), normal(F)], [(B, S, F)], (0, 1, 2)
        case "linear_out":
            inputs = [normal(B, S, F), normal(D, F), normal(D), normal(B, S, D)]
            return lambda ops: ops.linear_out, inputs, [(B, S, D)], (0, 1, 2, 3)
        case "rms_norm":
            return lambda ops: ops.rms_norm, [normal(B, S, D), normal(D)], [(B, S, D)], (0, 1)
        case "attention":
            qkv = [normal(B, S, heads * HD) for heads in (H, KV, KV)]
            inputs = [*qkv, normal(H), np.sort(rng.integers(0, 3, (B, S)))]
            return lambda ops: ops.attention(WINDOW), inputs, [(B, S, H * HD)], (0, 1, 2, 3)
        case "swiglu":
            return lambda ops: ops.swiglu, [5 * normal(B, S, 2 * F)], [(B, S, F)], (0,)
        case "fork":
            return lambda ops: ops.fork(3), [normal(B, S, D)], [(B, S, D)] * 3, (0,)
        case "expert_ffn":
            weights = [normal(E, D, 2 * F) / 8, normal(E, 2 * F), normal(E, F, D), normal(E, D)]
            inputs = [normal(B * S, D), rng.random((B * S, K)), rng.integers(0, E + 1, (B * S, K)), *weights]
            return lambda ops: ops.expert_ffn, inputs, [(B * S, D)], (0, 1, 3, 4, 5, 6)
        case "permute":
            inputs = [normal(B * S, D), rng.integers(-1, E + 1, (B * S, K))]
            return lambda ops: ops.permute(E), inputs, [(B * S * K, D)], (0,)
        case "combine":
            _, ids, slot, counts = routing(B * S, D, E, K)
            inputs = [normal(B * S * K, D), slot, rng.random(ids.shape), counts]
            return lambda ops: ops.combine, inputs, [(B * S, D)], (0, 2)
        case "cross_entropy":
            inputs = [normal(B, S, D), normal(V, D) / 7, rng.integers(0, V, (B, S)), rng.random((B, S))]
            return lambda ops: ops.cross_entropy, inputs, [()], (0, 1)
        case "cross_entropy_part":
            inputs = [normal(B * S, D), normal(V, D) / 7, rng.integers(-V, 2 * V, B * S)]

            def both(ops):
                def parts(x, w, labels):
                    log_sum, chosen = ops.cross_entropy_part.forward(x, w, labels)
                    return log_sum, chosen, *ops.cross_entropy_part.backward(chosen, log_sum + 1.0, x, w, labels)

                return parts

            return both, inputs, [], ()
        case "square_sum":

            def of_two(ops):
                def square_sum(a, b):
                    return ops.square_sum((a, b))

                return square_sum

            return of_two, [normal(V, D), normal(7)], [], ()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("one", "op"), own(OTHERS, BY_HOST | ALONE))
def test_siblings_equal_the_reference(one, op, precision, graph):
    rng = np.random.default_rng(0)
    take, arrays, outs, wrt = example(op, rng)
    shape, douts, inputs = op_shape(precision), [rng.standard_normal(out) for out in outs], [tensor(a) for a in arrays]
    want = run(take(reference_ops(shape)), inputs, douts, wrt, graph)
    got = run(take(ops_of(one, shape)), inputs, douts, wrt, graph)
    for a, b in zip(got[0] + got[1], want[0] + want[1], strict=True):
        assert a.shape == b.shape and (a.dtype == np.int32) == (b.dtype == np.int32)
        size = max(np.abs(b).max(), 1e-30)
        tolerance = {"fp32": 1e-5, "bf16": 2e-2 if one.startswith("cpu") else 4e-2}[precision]
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * size)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cached_attention_equals_the_reference(graph, precision):
    rng, shape = np.random.default_rng(0), op_shape(precision)
    qkv = [rng.standard_normal((B, S, heads * HD)) for heads in (H, KV, KV)]
    sinks, found, tolerance = tensor(rng.standard_normal(H)), [], {"fp32": 1e-5, "bf16": 3e-2}[precision]
    for ops in (reference_ops(shape), ops_of("cpu", shape)):
        cache = [Parameter(ms.ops.zeros((B, KV, S, HD), ops.cache_dtype), name=name) for name in "kv"]
        attend = ops.cached_attention(WINDOW)

        def step(q, k, v, start, attend=attend, cache=tuple(cache)):
            return attend(q, k, v, sinks, start, *cache)

        pieces = [
            (ms.jit(step) if graph else step)(*(tensor(x[:, a:b]) for x in qkv), tensor(np.array([a])))
            for a, b in ((0, 40), (40, 41), (41, S))
        ]
        found.append(np.concatenate([piece.astype(ms.float32).asnumpy() for piece in pieces], 1))
        whole = ops.attention(WINDOW)(*map(tensor, qkv), sinks, tensor(np.zeros((B, S), int)))
        np.testing.assert_allclose(found[-1], whole.astype(ms.float32).asnumpy(), atol=tolerance)
    np.testing.assert_allclose(found[1], found[0], atol=tolerance)


class Update(nn.Cell):
    """AdamW of two parameters, the second without decay."""

    def __init__(self, ops, starts):
        super().__init__()
        self.adamw = ops.adamw([True, False], beta1=0.9, beta2=0.95, eps=1e-6, weight_decay=0.1)
        self.weights = ParameterTuple([Parameter(tensor(x), name=f"w{i}") for i, x in enumerate(starts)])
        self.first, self.second = self.weights.clone("m", "zeros"), self.weights.clone("v", "zeros")

    def construct(self, lr, scale, number, *grads):
        return self.adamw(self.weights, self.first, self.second, grads, lr, scale, number)


def test_adamw_equals_the_reference(graph):
    rng = np.random.default_rng(0)
    starts, grads = ([rng.standard_normal(s) for s in ((30, 7), (5,))] for _ in range(2))
    found = []
    for ops in (reference_ops(op_shape()), ops_of("cpu", op_shape())):
        update = Update(ops, starts)
        step = ms.jit(update.construct) if graph else update
        for number in (1.0, 2.0):
            scalars = [Tensor(np.float32(x)) for x in (1e-2, 0.5, number)]
            assert float(step(*scalars, *map(tensor, grads)).asnumpy()) == number
        found.append([x.asnumpy() for part in (update.weights, update.first, update.second) for x in part])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def differences(f, x):
    """Gradient of the float64 function f at x by central differences."""
    out, step = np.zeros_like(x), 1e-6
    for i in np.ndindex(x.shape):
        kept, ends = x[i], []
        for x[i] in (kept + step, kept - step):
            ends.append(f(x))
        x[i] = kept
        out[i] = (ends[0] - ends[1]) / (2 * step)
    return out


def gates_of(x, ids, score, norm):
    if score == "softmax":
        x = np.exp(x - x.max(1, keepdims=True))
        x = x / x.sum(1, keepdims=True)
    chosen = np.take_along_axis(1 / (1 + np.exp(-x)) if score == "sigmoid" else x, ids, 1)
    if score == "softmax_after_topk":
        chosen, norm = np.exp(chosen - chosen.max(1, keepdims=True)), True
    return chosen / chosen.sum(1, keepdims=True) if norm else chosen


@pytest.mark.parametrize(
    ("tokens", "experts", "k", "score", "norm", "groups", "topk_groups"),
    [
        (1, 4, 1, "softmax_after_topk", True, 1, 1),
        (11, 32, 4, "softmax_after_topk", True, 1, 1),
        (9, 12, 3, "softmax", False, 1, 1),
        (7, 16, 4, "sigmoid", True, 4, 2),
    ],
)
@pytest.mark.parametrize("other", OTHERS)
def test_route(other, graph, tokens, experts, k, score, norm, groups, topk_groups):
    rng = np.random.default_rng(tokens)
    x, bias = rng.standard_normal((tokens, experts)), rng.permutation(experts) * 0.25
    name, *where = other.split(" on ")
    constants = (k, score, norm, 1.5, groups, topk_groups)
    op = ascend_routing.Route(ascend_pack(where[0]), *constants) if where else cpu_routing.Route(*constants)
    grad = rng.standard_normal((tokens, k))
    x = x.astype(np.float32).astype(np.float64)
    (gates, ids), (dx,) = run(op, [tensor(x), tensor(bias)], [grad], (0,), graph)
    p = np.exp(x - x.max(1, keepdims=True))
    scores = {"sigmoid": 1 / (1 + np.exp(-x)), "softmax": p / p.sum(1, keepdims=True), "softmax_after_topk": x}[score]
    key = (scores + bias).reshape(tokens, groups, -1)
    worth = np.sort(key, 2)[..., -2:].sum(2)
    closed = np.argsort(np.argsort(-worth, 1), 1) >= topk_groups
    key = np.where(closed[..., None], -np.inf, key).reshape(x.shape)
    np.testing.assert_array_equal(ids, np.argsort(-key, 1)[:, :k])
    assert ids.dtype == np.int32
    np.testing.assert_allclose(gates, 1.5 * gates_of(x, ids, score, norm), atol=3e-6)
    want = differences(lambda y: (1.5 * gates_of(y, ids, score, norm) * grad).sum(), x)
    np.testing.assert_allclose(dx, want, atol=5e-6)


def test_router(graph):
    """The one sibling that there is, against float64; `Route` and the statistics have tests of their own."""
    rng = np.random.default_rng(1)
    values = [rng.standard_normal(s).astype(np.float32).astype(np.float64) for s in ((7, D), (E, D), E)]
    x, weight, bias, selection = *values, rng.standard_normal(E)
    router = ops_of("cpu", op_shape()).router
    dgates, dprobs = rng.standard_normal((7, K)), rng.standard_normal(E)

    def plain(x, weight, bias, selection_bias):
        gates, ids, (counts, probs, z, entropy) = router(x, weight, bias, selection_bias)
        return gates, probs, z, ids, counts, entropy

    inputs = [tensor(value) for value in (x, weight, bias, selection)]
    outs, gradients = run(plain, inputs, [dgates, dprobs, 0.5], (0, 1, 2), graph)
    chosen = np.argsort(-(x @ weight.T + bias + selection), 1)[:, :K]

    def oracle(x, weight, bias):
        logits = x @ weight.T + bias
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        z = (np.log(np.exp(logits).sum(1)) ** 2).sum()
        return gates_of(logits, chosen, "softmax_after_topk", True), p.sum(0), z, p

    gates, probs, z, p = oracle(x, weight, bias)
    want = [gates, probs, z, chosen, np.bincount(chosen.ravel(), minlength=E), -(p * np.log(p)).sum()]
    for got, value in zip(outs, want, strict=True):
        np.testing.assert_allclose(got, value, rtol=2e-5, atol=1e-5)
    for place, gradient in enumerate(gradients):

        def loss(value, place=place):
            gates, probs, z, _ = oracle(*values[:place], value, *values[place + 1 :])
            return (gates * dgates).sum() + (probs * dprobs).sum() + 0.5 * z

        np.testing.assert_allclose(gradient, differences(loss, values[place]), rtol=1e-4, atol=1e-4)


ROUTINGS = [(1, 1, 3, 1), (40, 24, 7, 3)]  # tokens, hidden, experts, k


def routing(tokens, hidden, experts, k):
    """x, ids with two kinds of dropped assignments, slot, counts."""
    rng = np.random.default_rng(tokens)
    ids = rng.integers(-1, experts + 1, (tokens, k))
    flat = ids.ravel()
    valid = (flat >= 0) & (flat < experts)
    order = np.argsort(np.where(valid, flat, experts), kind="stable")[: valid.sum()]
    slot = np.full(flat.size, -1)
    slot[order] = np.arange(len(order))
    return rng.standard_normal((tokens, hidden)), ids, slot.reshape(ids.shape), np.bincount(flat[valid], None, experts)


@pytest.mark.parametrize("shape", ROUTINGS, ids=str)
def test_permute(sibling, graph, shape):
    tokens, hidden, experts, k = shape
    x, ids, slot, counts = routing(*shape)
    grad = np.random.default_rng(1).standard_normal((tokens * k, hidden))
    op = ops_of(sibling, op_shape()).permute(experts)
    (rows, got_slot, got_counts), (dx,) = run(op, [tensor(x), tensor(ids)], [grad], (0,), graph)
    np.testing.assert_array_equal(got_slot, slot)
    np.testing.assert_array_equal(got_counts, counts)
    want, back = np.zeros((tokens * k, hidden)), np.zeros_like(x)
    for (t, _), s in np.ndenumerate(slot):
        if s >= 0:
            want[s] = x[t]
            back[t] += grad[s]
    np.testing.assert_array_equal(rows, want.astype(np.float32))
    np.testing.assert_allclose(dx, back, atol=3e-6)


@pytest.mark.parametrize("shape", ROUTINGS, ids=str)
def test_combine(sibling, graph, shape):
    tokens, hidden, experts, k = shape
    _, _, slot, counts = routing(*shape)
    rng = np.random.default_rng(2)
    rows, gates = rng.standard_normal((tokens * k, hidden)), rng.random((tokens, k))
    grad = rng.standard_normal((tokens, hidden))
    op = ops_of(sibling, op_shape()).combine
    inputs = [tensor(rows), tensor(slot), tensor(gates), tensor(counts)]
    (out,), (drows, dgates) = run(op, inputs, [grad], (0, 2), graph)
    used = np.where(slot[..., None] >= 0, rows[slot], 0)
    want_rows = np.zeros_like(rows)
    t, j = np.nonzero(slot >= 0)
    want_rows[slot[t, j]] = gates[t, j, None] * grad[t]
    np.testing.assert_allclose(out, (gates[..., None] * used).sum(1), atol=3e-6)
    np.testing.assert_allclose(drows, want_rows, atol=3e-6)
    np.testing.assert_allclose(dgates, (used * grad[:, None]).sum(2), atol=3e-5)


def swiglu_oracle(h, grad):
    """float64 result of interleaved pairs, and the gradient of sum(grad * result)."""
    gate, up = np.minimum(h[..., ::2], LIMIT), np.clip(h[..., 1::2], -LIMIT, LIMIT)
    s = 1 / (1 + np.exp(-ALPHA * gate))
    dh = np.zeros_like(h)
    dh[..., ::2] = grad * (up + 1) * s * (1 + ALPHA * gate * (1 - s)) * (h[..., ::2] <= LIMIT)
    dh[..., 1::2] = grad * gate * s * (np.abs(h[..., 1::2]) <= LIMIT)
    return (up + 1) * gate * s, dh


def pairs(shape):
    """Gates and ups on both sides of the clamps, as float64 of float32, and a gradient of the result."""
    rng = np.random.default_rng(3)
    h = (rng.standard_normal(shape) * 5).astype(np.float32).astype(np.float64)
    return h, rng.standard_normal((*shape[:-1], shape[-1] // 2))


@pytest.mark.parametrize("shape", [(1, 2), (3, 5, 66)], ids=str)
def test_swiglu(sibling, graph, shape):
    h, grad = pairs(shape)
    op = ops_of(sibling, op_shape(swiglu_alpha=ALPHA, swiglu_limit=LIMIT)).swiglu
    (out,), (dh,) = run(op, [tensor(h)], [grad], (0,), graph)
    want, want_dh = swiglu_oracle(h, grad)
    np.testing.assert_allclose(out, want, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(dh, want_dh, rtol=5e-6, atol=1e-5)
