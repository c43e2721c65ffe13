"""The linear layer of the CPU pack."""

from mindspore import Tensor, nn

from mindmoe.ops.contract import OpShape
from mindmoe.ops.cpu.pack import STORAGE, Outputs, Pack, Precision, absent, lead, load, settings


class Linear(nn.Cell):
    """y = x @ w^T + bias + residual.

    Args:
        precision: of the products' operands; sums are fp32 either way.
        out: storage of y.
        pack: the library, by default the best of this machine.
    """

    def __init__(self, precision: Precision = "fp32", out: Precision = "fp32", pack: Pack | None = None):
        super().__init__()
        pack = pack or load()
        self.absent = absent()
        # Which optional inputs are there is a constant of an op, so there is an op for each case.
        self.plain = _Linear(precision, out, pack, False, False)
        self.biased = _Linear(precision, out, pack, True, False)
        self.added = _Linear(precision, out, pack, False, True)
        self.biased_added = _Linear(precision, out, pack, True, True)

    def construct(self, x: Tensor, w: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """y (..., out) of x (..., in), fp32 or bf16, and fp32 w (out, in), bias (out), residual (..., out)."""
        if bias is None:
            if residual is None:
                return self.plain(x, w, self.absent, self.absent)
            return self.added(x, w, self.absent, residual)
        if residual is None:
            return self.biased(x, w, bias, self.absent)
        return self.biased_added(x, w, bias, residual)


class _Linear(nn.Cell):
    def __init__(self, precision: Precision, out: Precision, pack: Pack, has_bias: bool, has_residual: bool):
        super().__init__()
        self.settings = settings(precision == "bf16", has_bias, has_residual)
        self.has_residual = has_residual
        self.forward = pack.op("linear_forward", lambda x, w, b, r, s: lead(x, w[0]), lambda x, *_: STORAGE[out], out)
        self.backward = pack.op("linear_backward", lambda dy, x, w, b, s: (x, w, b), lambda dy, x, w, b, s: (x, w, b))

    def construct(self, x: Tensor, w: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return self.forward(x, w, bias, residual, self.settings)

    def bprop(self, x: Tensor, w: Tensor, bias: Tensor, residual: Tensor, y: Tensor, dy: Tensor) -> Outputs:
        dx, dw, dbias = self.backward(dy, x, w, bias, self.settings)
        # The residual's gradient is y's. One that is absent is a zero (pack.absent), which serves as its own gradient.
        return dx, dw, dbias, dy if self.has_residual else residual


def build_linear(shape: OpShape, pack: Pack) -> Linear:
    """Activations in the precision of the operands."""
    return Linear(shape.precision, shape.precision, pack)


def build_linear_out(shape: OpShape, pack: Pack) -> Linear:
    """The result in fp32."""
    return Linear(shape.precision, "fp32", pack)
