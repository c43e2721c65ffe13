"""Runs of an op with gradients, in both execution modes, and comparison with an fp64 oracle."""

from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest


def tensor(array: np.ndarray) -> ms.Tensor:
    """fp64 becomes fp32, integers int32."""
    return ms.Tensor(array.astype(np.float32 if array.dtype.kind == "f" else np.int32))


def grads(op: Callable, inputs: list, douts: list[np.ndarray], wrt: list[int], jit: bool) -> tuple[list, list]:
    """Outputs of op(*inputs) and the gradients of sum(dout * output) with respect to the inputs numbered `wrt`."""
    tensors = [tensor(x) if isinstance(x, np.ndarray) else x for x in inputs]
    weights = [tensor(d) for d in douts]

    def loss(*args):
        out = op(*args)
        outs = out if isinstance(out, tuple) else (out,)
        total = 0.0
        for value, weight in zip(outs, weights):  # noqa: B905 (graph mode knows no strict=)
            total = total + (value * weight).sum()
        return total, outs

    function = ms.value_and_grad(loss, tuple(wrt), has_aux=True)
    (_, outs), gradients = (ms.jit(function) if jit else function)(*tensors)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    return [o.astype(ms.float32).asnumpy() for o in outs], [g.asnumpy() for g in gradients]


def close(got: np.ndarray, want: np.ndarray, tolerance: float, name: str = "") -> None:
    """Largest difference at most `tolerance` of the oracle's largest value."""
    assert got.shape == np.shape(want), (name, got.shape, np.shape(want))
    error = np.abs(got - want).max(initial=0.0) / max(np.abs(want).max(initial=0.0), 1e-30)
    assert error <= tolerance, f"{name}: {error:.2e} of the largest value, allowed {tolerance:.0e}"


@pytest.fixture(params=[True, False], ids=["graph", "pynative"])
def jit(request) -> bool:
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
