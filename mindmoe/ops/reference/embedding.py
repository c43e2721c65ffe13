"""Token embedding."""

from mindspore import Tensor, ops


def embedding(ids: Tensor, w: Tensor) -> Tensor:
    """Rows of w (V, D) at ids (..) int32 -> (.., D)."""
    return ops.gather(w, ids, 0)
