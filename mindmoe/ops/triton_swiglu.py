"""Clamped SwiGLU with a weight per row in Triton: a fusion of this size needs no Ascend C.

Triton-Ascend compiles the kernels on a card, where they take MindSpore's tensors (never run there by the authors); on a
CPU Triton's interpreter runs the same functions, slowly, for tests. Needs the extra `triton`.
"""

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindmoe.errors import UserError

try:
    import triton
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction
except ImportError as error:
    raise UserError("the sibling `triton` needs Triton", "pip install 'mindmoe[triton]'") from error

# MindSpore imports Triton, so TRITON_INTERPRET would come too late; functions of Triton's own library, such as
# tl.sum, are compiled ones by then and cannot be called below.
_INTERPRETED = ms.get_context("device_target") == "CPU"
jit: Callable[..., Any] = InterpretedFunction if _INTERPRETED else triton.jit

BLOCK = 256  # columns of one program


@jit
def _add(a, b):  # type: ignore[no-untyped-def]
    return a + b


@jit
def swiglu_kernel(h, weight, out, columns, alpha, limit, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """out[r, c] = weight[r] * (up + 1) * gate * sigmoid(alpha * gate) for interleaved pairs of h (N, 2F)."""
    row, column = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    pair = h + row * 2 * columns + 2 * column
    gate = tl.minimum(tl.load(pair, mask=inside, other=0.0).to(tl.float32), limit)
    up = tl.load(pair + 1, mask=inside, other=0.0).to(tl.float32)
    up = tl.minimum(tl.maximum(up, -limit), limit)
    y = tl.load(weight + row) * (up + 1.0) * gate / (1.0 + tl.exp(-alpha * gate))
    tl.store(out + row * columns + column, y.to(out.dtype.element_ty), mask=inside)


@jit
def swiglu_grad_kernel(  # type: ignore[no-untyped-def]
    dout, h, weight, dh, dweight, columns, alpha, limit, BLOCK: tl.constexpr
):
    """dh (N, 2F), zero where a value was clamped, and dweight (N): one program a row, so sums have one order."""
    row = tl.program_id(0)
    w = tl.load(weight + row)
    total = 0.0
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        pair = h + row * 2 * columns + 2 * column
        d = tl.load(dout + row * columns + column, mask=inside, other=0.0).to(tl.float32)
        raw_gate = tl.load(pair, mask=inside, other=0.0).to(tl.float32)
        raw_up = tl.load(pair + 1, mask=inside, other=0.0).to(tl.float32)
        gate = tl.minimum(raw_gate, limit)
        up = tl.minimum(tl.maximum(raw_up, -limit), limit)
        s = 1.0 / (1.0 + tl.exp(-alpha * gate))
        total += tl.reduce(d * (up + 1.0) * gate * s, 0, _add)
        dgate = tl.where(raw_gate <= limit, w * d * (up + 1.0) * s * (1.0 + alpha * gate * (1.0 - s)), 0.0)
        dup = tl.where(tl.abs(raw_up) <= limit, w * d * gate * s, 0.0)
        # One contiguous store of interleaved pairs: Triton-Ascend aborts on two masked stores of stride 2.
        both = tl.reshape(tl.join(dgate, dup), (2 * BLOCK,))
        place = 2 * start + tl.arange(0, 2 * BLOCK)
        tl.store(dh + row * 2 * columns + place, both.to(dh.dtype.element_ty), mask=place < 2 * columns)
    tl.store(dweight + row, total)


class WeightedSwiglu(nn.Cell):
    """weight * swiglu(h) with the gradients of both.

    Args:
        alpha, limit: of the SwiGLU.
    """

    def __init__(self, alpha: float, limit: float):
        super().__init__(auto_prefix=False)
        kernels: tuple[Any, Any] = _interpreted(alpha, limit) if _INTERPRETED else _compiled(alpha, limit)
        self.forward, self.backward = kernels

    def construct(self, h: Tensor, weight: Tensor) -> Tensor:
        """(N, F) of h (N, 2F), gate and up in turn, and weight (N); fp32."""
        return self.forward(h, weight)

    def bprop(self, h: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of h and weight."""
        return self.backward(dout, h, weight)


def _grid(rows: int, columns: int) -> tuple[int, int]:
    return rows, triton.cdiv(columns, BLOCK)


def _compiled(alpha: float, limit: float) -> tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor]]]:
    """The kernels on MindSpore's tensors, in PyNative mode."""

    def forward(h: Tensor, weight: Tensor) -> Tensor:
        out = ops.zeros((h.shape[0], h.shape[1] // 2), h.dtype)
        swiglu_kernel[_grid(*out.shape)](h, weight, out, out.shape[1], alpha, limit, BLOCK=BLOCK)
        return out

    def backward(dout: Tensor, h: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        dh, dweight = ops.zeros_like(h), ops.zeros_like(weight)
        swiglu_grad_kernel[(h.shape[0],)](dout, h, weight, dh, dweight, dout.shape[1], alpha, limit, BLOCK=BLOCK)
        return dh, dweight

    return forward, backward


def _interpreted(alpha: float, limit: float) -> tuple[ops.Custom, ops.Custom]:
    """The kernels on the arrays that MindSpore hands to a Python function; the interpreter wants them as torch's."""
    import torch

    def run(kernel: Any, grid: tuple[int, ...], inputs: tuple[np.ndarray, ...], outputs: tuple, columns: int) -> None:
        tensors = [torch.from_numpy(np.array(x)) for x in inputs] + [torch.from_numpy(x) for x in outputs]
        kernel[grid](*tensors, columns, alpha, limit, BLOCK=BLOCK)

    def forward(h: np.ndarray, weight: np.ndarray) -> np.ndarray:
        out = np.empty((len(h), h.shape[1] // 2), np.float32)
        run(swiglu_kernel, _grid(*out.shape), (h, weight), (out,), out.shape[1])
        return out

    def backward(dout: np.ndarray, h: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        dh, dweight = np.empty_like(h), np.empty_like(weight)
        run(swiglu_grad_kernel, (len(h),), (dout, h, weight), (dh, dweight), dout.shape[1])
        return dh, dweight

    return (
        ops.Custom(forward, lambda h, _: (h[0], h[1] // 2), lambda h, _: h, "pyfunc"),
        ops.Custom(backward, lambda _, h, w: (h, w), lambda _, h, w: (h, w), "pyfunc"),
    )
