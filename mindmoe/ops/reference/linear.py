"""y = x W^T + b, and the same added to a residual."""

from mindspore import Tensor, ops

from mindmoe.ops.contract import LinearOp, OpShape
from mindmoe.ops.precision import ROUND


def build_linear(shape: OpShape) -> LinearOp:
    """A product of rounded operands in fp32."""
    matmul = ops.MatMul(transpose_b=True)
    cast = ROUND[shape.precision]

    def linear(x: Tensor, w: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        # MatMul takes two dimensions: leading axes are folded, and come back.
        y = matmul(cast(x.reshape((-1, x.shape[-1]))), cast(w)).reshape((*x.shape[:-1], w.shape[0]))
        if bias is not None:
            y = y + bias
        return y if residual is None else y + residual

    return linear


def build_linear_out(shape: OpShape) -> LinearOp:
    """The same: the reference stores activations in fp32."""
    return build_linear(shape)
