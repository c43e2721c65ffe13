"""y = x W^T + b, and the same added to a residual."""

from collections.abc import Callable

from mindspore import Tensor, ops

from mindmoe.ops.precision import ROUND


def build_linear(precision: str) -> Callable[..., Tensor]:
    """Returns linear(x (.., Din), w (Dout, Din), b (Dout) or None, residual (.., Dout) or None) -> (.., Dout)."""
    matmul = ops.MatMul(transpose_b=True)
    cast = ROUND[precision]

    def linear(x: Tensor, w: Tensor, b: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        y = matmul(cast(x.reshape((-1, x.shape[-1]))), cast(w)).reshape((*x.shape[:-1], w.shape[0]))
        if b is not None:
            y = y + b
        return y if residual is None else y + residual

    return linear
