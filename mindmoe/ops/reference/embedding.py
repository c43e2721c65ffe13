"""Token embedding."""

from mindspore import Tensor, ops

from mindmoe.ops.contract import EmbeddingOp, OpShape


def build_embedding(shape: OpShape) -> EmbeddingOp:
    """A gather."""

    def embedding(ids: Tensor, w: Tensor) -> Tensor:
        return ops.gather(w, ids, 0)

    return embedding
