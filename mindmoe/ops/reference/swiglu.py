"""The clamped SwiGLU of gpt-oss."""

from collections.abc import Callable

from mindspore import Tensor, ops


def clamped_swiglu(h: Tensor, alpha: float, limit: float) -> Tensor:
    """(up + 1) * gate * sigmoid(alpha * gate) with gate and up interleaved on the last axis: (.., 2F) -> (.., F)."""
    gate = ops.minimum(h[..., ::2], limit)
    up = ops.clamp(h[..., 1::2], -limit, limit)
    return (up + 1.0) * gate * ops.sigmoid(gate * alpha)


def build_swiglu(alpha: float, limit: float) -> Callable[[Tensor], Tensor]:
    """Returns swiglu(h (.., 2F)) -> (.., F) with the constants of a model."""

    def swiglu(h: Tensor) -> Tensor:
        return clamped_swiglu(h, alpha, limit)

    return swiglu
