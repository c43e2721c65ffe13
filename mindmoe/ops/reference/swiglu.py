"""The clamped SwiGLU of gpt-oss."""

from mindspore import Tensor, float32, ops

from mindmoe.ops.contract import OpShape, SwigluOp


def clamped_swiglu(h: Tensor, alpha: float, limit: float) -> Tensor:
    """(up + 1) * gate * sigmoid(alpha * gate) with gate and up interleaved on the last axis: (.., 2F) -> (.., F)."""
    # A gate far below 0 needs no bound: its product with the sigmoid goes to 0.
    gate = ops.minimum(h[..., ::2], limit)
    up = ops.clamp(h[..., 1::2], -limit, limit)
    return (up + 1.0) * gate * ops.sigmoid(gate * alpha)


def build_swiglu(shape: OpShape) -> SwigluOp:
    """In fp32, whatever h is stored in."""
    alpha, limit = shape.model.swiglu_alpha, shape.model.swiglu_limit

    def swiglu(h: Tensor) -> Tensor:
        return clamped_swiglu(h.astype(float32), alpha, limit)

    return swiglu
