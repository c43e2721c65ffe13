"""Root-mean-square normalisation (arXiv 1910.07467), in fp32."""

from collections.abc import Callable

from mindspore import Tensor, ops


def build_rms_norm(eps: float) -> Callable[..., Tensor]:
    """Returns rms_norm(x (.., D), weight (D)) -> (.., D)."""

    def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * ops.rsqrt(ops.mean(x * x, -1, True) + eps) * weight

    return rms_norm
