"""Vocabulary projection and cross-entropy of the CPU pack, without the full logits in memory."""

from mindspore import Tensor, float32, nn

from mindmoe.ops.contract import OpShape
from mindmoe.ops.cpu.pack import Outputs, Pack, Precision, load, no_gradient, settings


class CrossEntropy(nn.Cell):
    """The masked sum of negative log likelihoods of labels under softmax(x @ w^T), with its gradient.

    The gradient is made in the forward pass, while the logits are at hand: one product fewer.

    Args:
        precision: of the products' operands; softmax and sums are fp32.
        pack: the library, by default the best of this machine.
    """

    def __init__(self, precision: Precision = "fp32", pack: Pack | None = None):
        super().__init__()
        self.inner = _CrossEntropy(precision, pack or load())

    def construct(self, x: Tensor, w: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """See the contract; a label outside 0..V-1 adds nothing."""
        return self.inner(x, w, labels, mask)[0].reshape(())


class _CrossEntropy(nn.Cell):
    """Returns the sum (1), each token's loss, and the sum's gradients of x and w."""

    def __init__(self, precision: Precision, pack: Pack):
        super().__init__()
        self.settings = settings(precision == "bf16")
        self.forward = pack.op(
            "cross_entropy_with_gradient",
            lambda x, w, labels, *_: ((1,), labels, x, w),
            # Gradients have the types of x and w.
            lambda x, w, *_: (float32, float32, x, w),
        )
        self.scale = pack.op("scale", lambda x, s: x, lambda x, s: x)

    def construct(self, x: Tensor, w: Tensor, labels: Tensor, mask: Tensor) -> Outputs:
        return self.forward(x, w, labels, mask, self.settings)

    def bprop(self, x: Tensor, w: Tensor, labels: Tensor, mask: Tensor, out: Outputs, dout: Outputs) -> Outputs:
        # The gradient of the sum is there already; the chain rule multiplies it by a number.
        return self.scale(out[2], dout[0]), self.scale(out[3], dout[0]), no_gradient(labels), no_gradient(mask)


class CrossEntropyPart:
    """As `mindmoe.ops.reference.cross_entropy.CrossEntropyPart`, without the logits of all tokens in memory.

    Args:
        precision: of the products' operands.
        pack: the library, by default the best of this machine.
    """

    def __init__(self, precision: Precision = "fp32", pack: Pack | None = None):
        pack = pack or load()
        self.settings = settings(precision == "bf16")
        self.first = pack.op(
            "cross_entropy_part_forward", lambda x, w, labels, *_: (labels, labels), lambda *_: (float32, float32)
        )
        self.second = pack.op(
            "cross_entropy_part_backward", lambda dnll, lse, x, w, *_: (x, w), lambda dnll, lse, x, w, *_: (x, w)
        )

    def forward(self, x: Tensor, w: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """x (T, D), w (V / P, D), labels (T) -> log of the denominator over the part (T), label's logit (T) or 0."""
        return self.first(x, w, labels, self.settings)

    def backward(self, dnll: Tensor, lse: Tensor, x: Tensor, w: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x and w; the logits are computed again."""
        return self.second(dnll, lse, x, w, labels, self.settings)


def build_cross_entropy(shape: OpShape, pack: Pack) -> CrossEntropy:
    """Over any leading axes."""
    return CrossEntropy(shape.precision, pack)


def build_cross_entropy_part(shape: OpShape, pack: Pack) -> CrossEntropyPart:
    """A part of the vocabulary."""
    return CrossEntropyPart(shape.precision, pack)
