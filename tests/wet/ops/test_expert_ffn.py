"""The experts' MLP against a loop over assignments, and its gradients against finite differences."""

import mindspore as ms
import numpy as np
import pytest
from each_sibling import ALPHA, LIMIT, op_shape
from mindspore import Tensor

from mindmoe.ops.reference.expert_ffn import block_rows, build_block_layout, build_expert_ffn


def make(tokens: int, experts: int, k: int, *, drop: float = 0.0, collapse: bool = False, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    d, f = 5, 3
    ids = np.argsort(rng.random((tokens, experts)), 1)[:, :k]
    if collapse:
        ids[:] = np.arange(k)
    ids = np.where(rng.random(ids.shape) < drop, experts, ids)
    shapes = [(tokens, d), (tokens, k), (experts, d, 2 * f), (experts, 2 * f), (experts, f, d), (experts, d)]
    x, gates, *weights = (rng.standard_normal(shape) * (6.0 if i == 2 else 1.0) for i, shape in enumerate(shapes))
    return [x, gates, ids, *weights]


def oracle(x, gates, ids, gate_up, gate_up_bias, down, down_bias) -> np.ndarray:
    out = np.zeros_like(x)
    for t, chosen in enumerate(ids):
        for g, e in zip(gates[t], chosen, strict=True):
            if e == len(gate_up):
                continue
            h = x[t] @ gate_up[e] + gate_up_bias[e]
            gate, up = np.minimum(h[::2], LIMIT), np.clip(h[1::2], -LIMIT, LIMIT)
            out[t] += g * (((up + 1) * gate / (1 + np.exp(-ALPHA * gate))) @ down[e] + down_bias[e])
    return out


def tensors(values: list) -> list[Tensor]:
    return [Tensor(value, ms.int32 if value.dtype.kind == "i" else ms.float32) for value in values]


CASES = [
    (1, 2, 1, 0.0, False),
    (17, 4, 2, 0.0, False),
    (40, 3, 3, 0.3, False),
    (64, 8, 2, 0.0, True),
    (9, 32, 4, 0.0, False),
    (300, 4, 2, 1.0, False),
]


@pytest.mark.parametrize(("tokens", "experts", "k", "drop", "collapse"), CASES)
def test_forward(tokens, experts, k, drop, collapse):
    values = make(tokens, experts, k, drop=drop, collapse=collapse)
    run = build_expert_ffn(op_shape(swiglu_alpha=ALPHA, swiglu_limit=LIMIT))
    want = oracle(*values)
    np.testing.assert_allclose(run(*tensors(values)).asnumpy(), want, atol=1e-5 * max(1.0, np.abs(want).max()))


def test_gradients():
    values = make(12, 4, 2, drop=0.2)
    run = build_expert_ffn(op_shape(swiglu_alpha=ALPHA, swiglu_limit=LIMIT))
    weight = np.random.default_rng(1).standard_normal(values[0].shape)

    def loss(*args: Tensor) -> Tensor:
        return (run(*args) * Tensor(weight, ms.float32)).sum()

    which = (0, 1, 3, 4, 5, 6)
    grads = ms.grad(loss, which)(*tensors(values))
    rng = np.random.default_rng(2)
    for at, grad in zip(which, grads, strict=True):
        direction = rng.standard_normal(values[at].shape)
        step = 1e-6
        ends = []
        for sign in (1, -1):
            moved = list(values)
            moved[at] = values[at] + sign * step * direction
            ends.append((oracle(*moved) * weight).sum())
        want = (ends[0] - ends[1]) / (2 * step)
        assert float((grad.asnumpy() * direction).sum()) == pytest.approx(want, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("assignments", "experts"), [(1, 1), (7, 3), (64, 4), (1024, 2), (50, 32)])
def test_layout_gives_every_assignment_a_slot_in_a_block_of_its_expert(assignments, experts):
    rng = np.random.default_rng(3)
    for ids in (
        rng.integers(0, experts, assignments),
        np.zeros(assignments, int),
        rng.integers(0, experts + 1, assignments),
    ):
        slot, source, expert = (x.asnumpy() for x in build_block_layout()(Tensor(ids.astype(np.int32)), experts))
        rows = block_rows(assignments, experts)
        assert len(source) == len(expert) * rows
        kept = np.flatnonzero(ids < experts)
        assert (source[slot[kept]] == kept).all() and len(set(slot[kept])) == len(kept)
        assert (expert[slot[kept] // rows] == ids[kept]).all()
        assert (slot[ids == experts] == len(source)).all()
        assert (source == assignments).sum() == len(source) - len(kept)
        for e in range(experts):  # stable: an expert's rows keep the order of their tokens
            assert (np.diff(slot[kept][ids[kept] == e]) > 0).all()
