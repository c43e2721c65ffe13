"""RMSNorm of the CPU pack."""

from mindspore import Tensor, nn

from mindmoe.ops.contract import OpShape
from mindmoe.ops.cpu.pack import STORAGE, Pack, Precision, load, settings


class RmsNorm(nn.Cell):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last axis, in fp32.

    Args:
        eps: added to the mean square.
        out: storage of y; `bf16` halves what a following bf16 op reads.
        pack: the library, by default the best of this machine.
    """

    def __init__(self, eps: float = 1e-5, out: Precision = "fp32", pack: Pack | None = None):
        super().__init__()
        pack = pack or load()
        self.eps = settings(eps)
        self.forward = pack.op("rms_norm_forward", lambda x, w, e: x, lambda x, w, e: STORAGE[out], out)
        self.backward = pack.op("rms_norm_backward", lambda dy, x, w, e: (x, w), lambda dy, x, w, e: (x, w))

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        """y (..., D) of x (..., D) and weight (D)."""
        return self.forward(x, weight, self.eps)

    def bprop(self, x: Tensor, weight: Tensor, y: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x and weight."""
        return self.backward(dy, x, weight, self.eps)


def build_rms_norm(shape: OpShape, pack: Pack) -> RmsNorm:
    """Activations in the precision of the operands."""
    return RmsNorm(shape.model.rms_norm_eps, shape.precision, pack)
