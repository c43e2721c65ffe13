"""The clamped SwiGLU of gpt-oss."""

from mindspore import Tensor, ops


def clamped_swiglu(h: Tensor, alpha: float, limit: float) -> Tensor:
    """(up + 1) * gate * sigmoid(alpha * gate) with gate and up interleaved on the last axis: (.., 2F) -> (.., F)."""
    gate = ops.minimum(h[..., ::2], limit)
    up = ops.clamp(h[..., 1::2], -limit, limit)
    return (up + 1.0) * gate * ops.sigmoid(gate * alpha)
