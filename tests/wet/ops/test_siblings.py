"""One contract for every sibling of an op: outputs and gradients against float64, in graph and PyNative.

The Ascend C kernels take part twice: as installed on a card, which skips where there is none, and on the host model,
where the cells, their backward passes, op_host's tiling and the kernel sources are the ones that a card runs.
"""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindmoe.errors import UserError
from mindmoe.model.config import ModelConfig
from mindmoe.ops import siblings
from mindmoe.ops.ascend import roofline, timing
from mindmoe.ops.ascend.attention import build_attention
from mindmoe.ops.ascend.pack import InstalledPack, load
from mindmoe.ops.ascend.routing import CapacityLimit, Permute
from mindmoe.ops.reference.attention import build_attention as reference_attention
from mindmoe.ops.select import OpShape, select_ops

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels"))

from mindspore_pack import host_model_pack  # noqa: E402

ALPHA, LIMIT = 1.702, 7.0


def ascend_pack(where):
    """The Ascend C kernels on a `card` or on the `host model`; skips where there is none."""
    if where == "card":
        try:
            return load()
        except UserError as error:
            pytest.skip(str(error))
    if shutil.which("g++") is None:
        pytest.skip("the host model needs g++")
    return host_model_pack()


@pytest.fixture(params=["reference", "cpu", "ascend on host model", "ascend on card"])
def sibling(request):
    """Name and pack of a sibling that runs here."""
    name, *where = request.param.split(" on ")
    if name == "cpu" and shutil.which("g++") is None:
        pytest.skip("the CPU pack needs g++")
    return name, ascend_pack(where[0]) if where else None


@pytest.fixture(params=[False, True], ids=["pynative", "graph"])
def graph(request):
    return request.param


def tensor(x):
    return Tensor(np.asarray(x).astype(np.int32 if np.asarray(x).dtype.kind == "i" else np.float32))


def run(op, inputs, douts, wrt, graph):
    """Outputs, and gradients of sum(dout * output) of the inputs `wrt`, as float64 arrays."""
    weights = [tensor(d) for d in douts]

    def loss(*args):
        out = op(*args)
        outs = out if isinstance(out, tuple) else (out,)
        total = Tensor(0.0)
        for i in range(len(weights)):
            total = total + (outs[i].astype(ms.float32) * weights[i]).sum()
        return total

    gradient = ms.grad(loss, tuple(wrt))
    outs = (ms.jit(op) if graph else op)(*inputs)
    gradients = (ms.jit(gradient) if graph else gradient)(*inputs)
    outs, gradients = (x if isinstance(x, tuple) else (x,) for x in (outs, gradients))
    assert len(gradients) == len(wrt)
    plain = [x if x.dtype == ms.int32 else x.astype(ms.float32) for x in (*outs, *gradients)]
    return [x.asnumpy() for x in plain[: len(outs)]], [x.asnumpy().astype(np.float64) for x in plain[len(outs) :]]


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
def test_route(sibling, graph, tokens, experts, k, score, norm, groups, topk_groups):
    rng = np.random.default_rng(tokens)
    x, bias = rng.standard_normal((tokens, experts)), rng.permutation(experts) * 0.25
    op = siblings.build_route(
        sibling[0], k, score=score, norm_topk=norm, scale=1.5, groups=groups, topk_groups=topk_groups, pack=sibling[1]
    )
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
    op = siblings.build_permute(sibling[0], experts, pack=sibling[1])
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
    op = siblings.build_combine(sibling[0], pack=sibling[1])
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
    op = siblings.build_swiglu(sibling[0], ALPHA, LIMIT, pack=sibling[1])
    (out,), (dh,) = run(op, [tensor(h)], [grad], (0,), graph)
    want, want_dh = swiglu_oracle(h, grad)
    np.testing.assert_allclose(out, want, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(dh, want_dh, rtol=5e-6, atol=1e-5)


@pytest.mark.parametrize("name", ["reference", "triton"])
@pytest.mark.parametrize("shape", [(1, 2), (3, 600)], ids=str)
def test_weighted_swiglu(name, graph, shape):
    if name == "triton" and not (find_spec("triton") and find_spec("torch")):
        pytest.skip("needs the extras triton and hf: Triton's interpreter takes tensors of torch")
    h, grad = pairs(shape)
    weight = np.random.default_rng(4).random(shape[0])
    op = siblings.build_weighted_swiglu(name, ALPHA, LIMIT)
    (out,), (dh, dweight) = run(op, [tensor(h), tensor(weight)], [grad], (0, 1), graph)
    plain, _ = swiglu_oracle(h, grad)
    _, want_dh = swiglu_oracle(h, grad * weight[:, None])
    np.testing.assert_allclose(out, plain * weight[:, None], rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(dh, want_dh, rtol=5e-6, atol=1e-5)
    np.testing.assert_allclose(dweight, (plain * grad).sum(1), rtol=1e-5, atol=1e-4)


@pytest.fixture(params=["host model", "card"])
def ascend(request):
    """The Ascend C kernels, for what the other siblings do not have in this form."""
    return ascend_pack(request.param)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("sinks", "documents", "window", "graph"),
    [(True, True, 5, True), (True, True, 5, False), (False, False, 0, False), (True, False, 0, False)],
)
def test_attention_equals_the_reference(ascend, graph, sinks, documents, window, bf16):
    batch, length, heads, kv, dim = 2, 70, 4, 2, 16
    rng = np.random.default_rng(4)
    angle = rng.random((length, dim // 2)).astype(np.float32)
    bound = {
        "cos": np.cos(angle), "sin": np.sin(angle), "head_dim": dim, "window": window, "documents": documents,
        "precision": "bf16" if bf16 else "fp32",
    }  # fmt: skip
    inputs = [tensor(rng.standard_normal((batch, length, n * dim))) for n in (heads, kv, kv)]
    inputs += [tensor(rng.standard_normal(heads)) if sinks else None]
    inputs += [tensor(np.sort(rng.integers(0, 3, (batch, length)), 1))]
    grad = rng.standard_normal((batch, length, heads * dim))
    wrt = (0, 1, 2, 3) if sinks else (0, 1, 2)
    want, want_grads = run(reference_attention(**bound), inputs, [grad], wrt, graph)
    got, got_grads = run(build_attention(ascend, **bound), inputs, [grad], wrt, graph)
    for a, b in zip(got + got_grads, want + want_grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=(4e-2 if bf16 else 1e-5) * max(1.0, np.abs(b).max()))


def test_capacity_limit_keeps_the_best(ascend, graph):
    rng = np.random.default_rng(5)
    ids, gates = rng.integers(0, 5, (30, 2)), rng.permutation(60).reshape(30, 2) / 60
    op = CapacityLimit(ascend, 5, 7)
    kept = (ms.jit(op) if graph else op)(tensor(ids), tensor(gates)).asnumpy()
    for e in range(5):
        mine = np.flatnonzero(ids == e)
        best = set(mine[np.argsort(-gates.ravel()[mine])[:7]])
        assert set(np.flatnonzero(kept == e)) == best
    assert ((kept == ids) | (kept == 5)).all()


def test_permute_with_a_capacity(ascend, graph):
    ids = np.array([[0], [1], [0], [0], [2]])
    x = np.arange(10.0).reshape(5, 2)
    (rows, slot, counts), (dx,) = run(Permute(ascend, 3, 2), [tensor(x), tensor(ids)], [np.ones((6, 2))], (0,), graph)
    assert slot.ravel().tolist() == [0, 2, 1, -1, 4] and counts.tolist() == [2, 1, 1]
    np.testing.assert_array_equal(rows, x[[0, 2, 1, 1, 4, 4]] * np.array([1, 1, 1, 0, 1, 0])[:, None])
    np.testing.assert_array_equal(dx, np.array([1, 1, 1, 0, 1])[:, None] * np.ones((1, 2)))


def test_every_timed_call_runs(ascend):
    """On the host model in small: what a card times is what the contracts above hold."""
    if isinstance(ascend, InstalledPack):
        pytest.skip("kernels/run_ascend.sh times the card")
    small = roofline.Shape(tokens=16, topk=2, experts=8, hidden=16, ffn=8, heads=2, kv_heads=1, head_dim=16)
    lines = timing.table(ascend, small, ms.bfloat16, 1, lambda: None).splitlines()
    assert len(lines) == 11 and all(float(line.split()[-3]) > 0 for line in lines[1:])
    launched = {kernel for kernels, _ in timing.calls(ascend, small, ms.bfloat16).values() for kernel in kernels}
    assert launched == set(roofline.work(small)) - {"attention_sink"}  # that one follows a stock op


def test_the_kernels_are_refused_where_they_cannot_run():
    if ms.get_context("device_target") == "Ascend":
        pytest.skip("they can run here")
    with pytest.raises(UserError, match="do not run on CPU: use the siblings"):
        siblings.build_route("ascend", 2)
    model = ModelConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        intermediate_size=8,
    )  # fmt: skip
    shape = OpShape(model=model, moe=None, seq_length=4)
    with pytest.raises(UserError, match="do not run on CPU"):
        select_ops(shape, device="cpu", kernels="ascend", threads=1)


def test_a_package_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(ms, "get_context", lambda _: "Ascend")
    monkeypatch.setenv("ASCEND_CUSTOM_OPP_PATH", f"{tmp_path}:/nowhere")
    with pytest.raises(UserError, match="holds no mindmoe kernels: run kernels/build_ascend.sh"):
        load()
    header = tmp_path / "op_api" / "include" / "aclnn_moe_gating.h"
    header.parent.mkdir(parents=True)
    header.touch()
    assert isinstance(load(), InstalledPack)
