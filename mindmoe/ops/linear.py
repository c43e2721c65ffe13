"""y = x W^T + b."""

from collections.abc import Callable

from mindspore import Tensor, ops

from mindmoe.ops.precision import ROUND


def build_linear(precision: str) -> Callable[..., Tensor]:
    """Returns linear(x (T, Din), w (Dout, Din), b (Dout) or None) -> (T, Dout)."""
    matmul = ops.MatMul(transpose_b=True)
    cast = ROUND[precision]

    def linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        y = matmul(cast(x), cast(w))
        return y if b is None else y + b

    return linear
