"""The kernels as a cell of MindSpore, on a card, in PyNative; the authors have none and never ran this file."""

from collections.abc import Callable

import triton
from mindspore import Tensor, float32, nn, ops
from swiglu import BLOCK, swiglu_grad_kernel, swiglu_kernel

from mindmoe.ops.contract import OpShape


class WeightedSwiglu(nn.Cell):
    """weight * swiglu(h) with the gradients of both.

    Args:
        alpha, limit: of the SwiGLU.
    """

    def __init__(self, alpha: float, limit: float):
        super().__init__(auto_prefix=False)
        self.alpha, self.limit = alpha, limit

    def construct(self, h: Tensor, weight: Tensor) -> Tensor:
        """(N, F) of h (N, 2F), gate and up in turn, and weight (N) fp32."""
        out = ops.zeros((h.shape[0], h.shape[1] // 2), h.dtype)
        grid = (h.shape[0], triton.cdiv(out.shape[1], BLOCK))
        swiglu_kernel[grid](h, weight, out, out.shape[1], self.alpha, self.limit, BLOCK=BLOCK)
        return out

    def bprop(self, h: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of h, zero where a value was clamped, and weight."""
        dh, dweight = ops.zeros_like(h), ops.zeros_like(weight)
        columns = dout.shape[1]
        swiglu_grad_kernel[(h.shape[0],)](dout, h, weight, dh, dweight, columns, self.alpha, self.limit, BLOCK=BLOCK)
        return dh, dweight


def build_swiglu(shape: OpShape) -> Callable[[Tensor], Tensor]:
    """The op `swiglu` of mindmoe/ops/contract.py: every weight is 1."""
    op = WeightedSwiglu(shape.model.swiglu_alpha, shape.model.swiglu_limit)

    def swiglu(h: Tensor) -> Tensor:
        rows = h.reshape((-1, h.shape[-1]))
        return op(rows, ops.ones(rows.shape[:1], float32)).reshape((*h.shape[:-1], -1))

    return swiglu
