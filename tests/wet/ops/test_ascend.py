"""The Ascend C kernels in what the other siblings do not have in this form; skips the card where there is none."""

import mindspore as ms
import numpy as np
import pytest
from each_sibling import HD, KV, B, H, S, ascend_pack, op_shape, run, tensor

from mindmoe.host.errors import UserError
from mindmoe.ops.ascend import roofline, timing
from mindmoe.ops.ascend.pack import InstalledPack, load
from mindmoe.ops.ascend.routing import CapacityLimit, Permute
from mindmoe.ops.select import ascend_ops, reference_ops, select_ops


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
    rng = np.random.default_rng(4)
    shape = op_shape("bf16" if bf16 else "fp32", documents)
    inputs = [tensor(rng.standard_normal((B, S, n * HD))) for n in (H, KV, KV)]
    inputs += [tensor(rng.standard_normal(H)) if sinks else None]
    inputs += [tensor(np.sort(rng.integers(0, 3, (B, S)), 1))]
    grad = rng.standard_normal((B, S, H * HD))
    wrt = (0, 1, 2, 3) if sinks else (0, 1, 2)
    want, want_grads = run(reference_ops(shape).attention(window), inputs, [grad], wrt, graph)
    got, got_grads = run(ascend_ops(shape, ascend).attention(window), inputs, [grad], wrt, graph)
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
    with pytest.raises(UserError, match="do not run on CPU: set train.kernels=auto"):
        select_ops(op_shape(), device="cpu", kernels="ascend", threads=1)


def test_a_package_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(ms, "get_context", lambda _: "Ascend")
    monkeypatch.setenv("ASCEND_CUSTOM_OPP_PATH", f"{tmp_path}:/nowhere")
    with pytest.raises(UserError, match="holds no mindmoe kernels: run kernels/build_ascend.sh"):
        load()
    header = tmp_path / "op_api" / "include" / "aclnn_moe_gating.h"
    header.parent.mkdir(parents=True)
    header.touch()
    assert isinstance(load(), InstalledPack)
