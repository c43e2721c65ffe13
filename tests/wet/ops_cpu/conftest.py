"""Runs of an op with gradients, on every instruction set and in both execution modes, against a NumPy oracle.

An oracle is a function of fp64 arrays that returns the outputs as a tuple, and a function from their gradients to those
of the inputs. The oracle's own gradients are held to complex-step differences, so it cannot be wrong as the op is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from mindmoe.host.errors import UserError
from mindmoe.ops.cpu.pack import Pack, load


def tensor(array: np.ndarray) -> ms.Tensor:
    """fp64 becomes fp32, integers int32."""
    return ms.Tensor(array.astype(np.float32 if array.dtype.kind == "f" else np.int32))


def rounded(array: Any) -> Any:
    """What an op sees: fp64 arrays of fp32 values."""
    return array.astype(np.float32).astype(np.float64) if getattr(array, "dtype", None) == np.float64 else array


@dataclass(frozen=True)
class Case:
    """One way to run an op."""

    pack: Pack
    jit: bool

    def run(self, op: Callable, inputs: Sequence[Any], douts: Sequence[np.ndarray], wrt: Sequence[int]) -> tuple:
        """Outputs of op(*inputs), and gradients of the sum of dout * output with respect to the inputs in `wrt`."""
        weights = [tensor(np.asarray(d)) for d in douts]

        def loss(*args):
            out = op(*args)
            outs = out if isinstance(out, tuple) else (out,)
            total = 0.0
            for value, weight in zip(outs, weights):  # noqa: B905 (graph mode knows no strict=)
                total = total + (value.astype(ms.float32) * weight).sum()
            return total, outs

        function = ms.value_and_grad(loss, tuple(wrt), has_aux=True)
        tensors = [tensor(x) if isinstance(x, np.ndarray) else x for x in inputs]
        (_, outs), gradients = (ms.jit(function) if self.jit else function)(*tensors)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        numbers = (ms.int32, ms.int64)
        as_numpy = [x if x.dtype in numbers else x.astype(ms.float32) for x in (*outs, *gradients)]
        return [x.asnumpy() for x in as_numpy[: len(outs)]], [x.asnumpy() for x in as_numpy[len(outs) :]]

    def check_values(self, op: Callable, oracle: Callable, inputs: Sequence[Any], tolerance: float) -> None:
        """As `check`, without gradients."""
        inputs = [rounded(x) for x in inputs]
        got = (ms.jit(op) if self.jit else op)(*(tensor(x) for x in inputs))
        close(got.astype(ms.float32).asnumpy(), oracle(*inputs)[0][0], tolerance)

    def check(
        self, op: Callable, oracle: Callable, inputs: Sequence[Any], wrt: Sequence[int], tolerance: float
    ) -> None:
        """The op's outputs and gradients differ from the oracle's by at most `tolerance` of the largest value."""
        inputs = [rounded(x) for x in inputs]
        want, backward = oracle(*inputs)
        rng = np.random.default_rng(7)
        douts = [rounded(rng.standard_normal(np.shape(y))) for y in want]
        want_gradients = backward(*douts)
        if sum(np.size(x) for x in inputs) < 20000:  # the oracle's own size does not matter to its correctness
            differences(oracle, inputs, wrt, douts, want_gradients)
        got, gradients = self.run(op, inputs, douts, wrt)
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            close(a, b, tolerance, f"output {i}")
        for i, a, b in zip(wrt, gradients, want_gradients, strict=True):
            close(a, b, tolerance, f"gradient of input {i}")


def close(got: np.ndarray, want: np.ndarray, tolerance: float, name: str = "") -> None:
    """Largest difference at most `tolerance` of the oracle's largest value."""
    assert got.shape == np.shape(want), (name, got.shape, np.shape(want))
    error = np.abs(got - want).max(initial=0.0) / max(np.abs(want).max(initial=0.0), 1e-30)
    assert error <= tolerance, f"{name}: {error:.2e} of the largest value, allowed {tolerance:.0e}"


def differences(oracle: Callable, inputs: Sequence, wrt: Sequence[int], douts: Sequence, gradients: Sequence) -> None:
    """Holds an oracle's gradients to its own complex-step derivatives at a few coordinates of each input."""
    rng = np.random.default_rng(1)
    for number, gradient in zip(wrt, gradients, strict=True):
        for flat in rng.choice(inputs[number].size, min(2, inputs[number].size), replace=False):
            moved = [x.astype(complex) if getattr(x, "dtype", None) == np.float64 else x for x in inputs]
            moved[number].flat[flat] += 1e-30j
            outs, _ = oracle(*moved)
            slope = sum((d * y).sum().imag for d, y in zip(douts, outs, strict=True)) / 1e-30
            assert abs(slope - gradient.flat[flat]) <= 1e-9 * np.abs(gradient).max(initial=1e-30), (number, flat)


@pytest.fixture(params=["graph", "pynative", "avx512", "avx2", "portable"])
def case(request: pytest.FixtureRequest) -> Case:
    """Both modes with the best instruction set and oneDNN; the other sets, in PyNative, with the product of our own."""
    if request.param in ("graph", "pynative"):
        return Case(load(), request.param == "graph")
    try:
        pack = load(request.param)
    except UserError as error:
        pytest.skip(str(error))
    pack.set_gemm("own")
    return Case(pack, False)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
