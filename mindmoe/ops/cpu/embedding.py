"""Token embedding of the CPU pack."""

from mindspore import Tensor, float32, nn

from mindmoe.ops.contract import OpShape
from mindmoe.ops.cpu.pack import Pack, load, no_gradient


class Embedding(nn.Cell):
    """Rows of a table; the gradient adds the rows of equal tokens in token order."""

    def __init__(self, pack: Pack | None = None):
        super().__init__()
        pack = pack or load()
        self.forward = pack.op("embedding_forward", lambda ids, w: (*ids, w[1]), lambda *_: float32)
        # w only lends its shape and type.
        self.backward = pack.op("embedding_backward", lambda ids, dy, w: w, lambda *_: float32)

    def construct(self, ids: Tensor, w: Tensor) -> Tensor:
        """(..., D) of ids (...) int32 and w (V, D); an id outside 0..V-1 gives zeros."""
        return self.forward(ids, w)

    def bprop(self, ids: Tensor, w: Tensor, y: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of w."""
        return no_gradient(ids), self.backward(ids, dy, w)


def build_embedding(shape: OpShape, pack: Pack) -> Embedding:
    """Zeros for an id outside the table."""
    return Embedding(pack)
