"""Root-mean-square normalisation (arXiv 1910.07467)."""

from mindspore import Tensor, ops

from mindmoe.ops.contract import OpShape, RmsNormOp


def build_rms_norm(shape: OpShape) -> RmsNormOp:
    """In fp32."""
    eps = shape.model.rms_norm_eps

    def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * ops.rsqrt(ops.mean(x * x, -1, True) + eps) * weight

    return rms_norm
