"""The clamped SwiGLU on the Ascend C kernels."""

from mindspore import Tensor, nn

from mindmoe.ops.ascend.pack import Pack
from mindmoe.ops.contract import OpShape


class Swiglu(nn.Cell):
    """(up + 1) * gate * sigmoid(alpha * gate) of interleaved pairs, clamped at `limit`."""

    def __init__(self, pack: Pack, alpha: float, limit: float):
        super().__init__(auto_prefix=False)
        self.forward, self.attributes = pack.op(
            "Swiglu", lambda h, *_: (*h[:-1], h[-1] // 2), lambda h, *_: h, float(alpha), float(limit)
        )
        # The attributes are those of the forward op.
        self.backward, _ = pack.op("SwigluGrad", lambda dout, h, *_: h, lambda dout, h, *_: h, alpha, limit)

    def construct(self, h: Tensor) -> Tensor:
        """h (.., 2F) -> (.., F), fp32 or bf16."""
        return self.forward(h, *self.attributes)

    def bprop(self, h: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """Gradient of h, zero where a value was clamped."""
        return (self.backward(dout, h, *self.attributes),)


def build_swiglu(shape: OpShape, pack: Pack) -> Swiglu:
    """With the constants of a model."""
    return Swiglu(pack, shape.model.swiglu_alpha, shape.model.swiglu_limit)
