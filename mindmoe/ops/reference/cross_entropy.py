"""Vocabulary projection and cross-entropy in one op, so that no logits are kept for the backward pass."""

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindmoe.ops.contract import CrossEntropyOp, CrossEntropyPartOp, OpShape, Precision
from mindmoe.ops.precision import ROUND
from mindmoe.ops.zeros import zeros_like


class ProjectedCrossEntropy(nn.Cell):
    """Sum over tokens of mask * -log softmax(x W^T)[label]; the backward pass computes the logits again.

    Keeping nothing of size (T, V) between the passes costs one more product and saves the largest buffer of the step.
    """

    def __init__(self, precision: Precision):
        super().__init__(auto_prefix=False)
        self.all = CrossEntropyPart(precision)

    def construct(self, x: Tensor, w: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """x (T, D), w (V, D), labels (T) int32, mask (T) -> scalar sum [nats]."""
        log_sum, chosen = self.all.forward(x, w, labels)
        return ((log_sum - chosen) * mask).sum()

    def bprop(
        self, x: Tensor, w: Tensor, labels: Tensor, mask: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of x and w; the logits are computed again rather than kept."""
        # The mask is the gradient of each token's loss.
        dx, dw = self.all.backward(mask * dout, None, x, w, labels)
        return dx, dw, zeros_like(labels), zeros_like(mask)


def build_cross_entropy(shape: OpShape) -> CrossEntropyOp:
    """Over any leading axes."""
    projected = ProjectedCrossEntropy(shape.precision)

    def cross_entropy(x: Tensor, w: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        return projected(x.reshape((-1, x.shape[-1])), w, labels.reshape(-1), mask.reshape(-1))

    return cross_entropy


def build_cross_entropy_part(shape: OpShape) -> CrossEntropyPartOp:
    """A part of the vocabulary."""
    return CrossEntropyPart(shape.precision)


class CrossEntropyPart:
    """See the contract; `lse` is None where the part is all of the vocabulary."""

    def __init__(self, precision: Precision):
        self.cast = ROUND[precision]
        self.project = ops.MatMul(transpose_b=True)
        self.plain = ops.MatMul()
        self.left_t = ops.MatMul(transpose_a=True)
        self.one_hot = ops.OneHot()
        self.on, self.off = Tensor(1.0), Tensor(0.0)

    def forward(self, x: Tensor, w: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.project(self.cast(x), self.cast(w))
        label, held = _placed(labels, w.shape[0])
        # Elsewhere word 0 is read, a valid index, and multiplied away.
        return ops.logsumexp(logits, 1), ops.gather_elements(logits, 1, label.expand_dims(1)).squeeze(1) * held

    def backward(self, dnll: Tensor, lse: Tensor | None, x: Tensor, w: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        x, w = self.cast(x), self.cast(w)
        logits = self.project(x, w)
        # With the log-denominator of the whole vocabulary a part's probabilities sum to less than 1.
        p = ops.softmax(logits, 1) if lse is None else ops.exp(logits - lse.expand_dims(1))
        label, held = _placed(labels, w.shape[0])
        chosen = self.one_hot(label, w.shape[0], self.on, self.off) * held.expand_dims(1)
        # d loss / d logits = (p - onehot) * d loss; a label elsewhere leaves p alone.
        d = self.cast((p - chosen) * dnll.expand_dims(1))
        return self.plain(d, w), self.left_t(d, x)


def _placed(labels: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """Labels that are in the part, 0 for those elsewhere, and whether they are (T) fp32."""
    held = ops.logical_and(labels >= 0, labels < words)
    return labels * held.astype(ms.int32), held.astype(ms.float32)
