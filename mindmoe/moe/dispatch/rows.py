"""What the dispatchers share: tokens with their assignments as one tensor, and rows that each have one expert."""

from collections.abc import Callable

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindmoe.ops.zeros import zeros_like

ExpertFfn = Callable[..., Tensor]
Weights = tuple[Tensor, Tensor, Tensor, Tensor]
"""gate_up (E, D, 2F), its bias (E, 2F), down (E, F, D), its bias (E, D): this rank's part of them."""


def pack_tokens(x: Tensor, gates: Tensor, ids: Tensor) -> Tensor:
    """x (.., D) with T rows, gates (T, K), ids (T, K) -> (T, D + 2K) fp32: what travels of a token in one message."""
    tokens = x.astype(ms.float32).reshape((-1, x.shape[-1]))
    return ops.concat((tokens, gates, ids.astype(ms.float32)), 1)


def unpack_tokens(packed: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """(T, D + 2K) -> x (T, D), gates (T, K), ids (T, K) int32; ids carry no gradient."""
    dim = packed.shape[1] - 2 * k
    ids = ops.stop_gradient(packed[:, dim + k :]).astype(ms.int32)
    return packed[:, :dim], packed[:, dim : dim + k], ids


def local_ids(ids: Tensor, first: int, count: int) -> Tensor:
    """Global expert numbers -> numbers among the `count` experts from `first` on; `count` for all others."""
    shifted = ids - first
    held = ops.logical_and(shifted >= 0, shifted < count)
    return ops.select(held, shifted, ops.full_like(shifted, count))


class _WithoutLast(nn.Cell):
    """x (R + 1, D) -> (R, D); MindSpore's own gradient of a slice fails where nothing is left of it."""

    def construct(self, x: Tensor) -> Tensor:
        """All rows but the last."""
        return x[:-1]

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """The gradient with a row of zeros behind it."""
        none = zeros_like(x[-1:])
        return (none if x.shape[0] == 1 else ops.concat((dout.astype(x.dtype), none), 0),)


WITHOUT_LAST = _WithoutLast(auto_prefix=False)
"""Takes the row off again that keeps tensors from being empty: gradients of empty tensors fail."""


def through_experts(expert_ffn: ExpertFfn, rows: Tensor, ids: Tensor, weights: Weights) -> Tensor:
    """Rows (R, D) through the experts ids (R) int32, E where there is none -> (R, D).

    A row without expert is added for the computation, so that a rank that receives nothing needs no path of its own:
    its weights have a gradient too, and with it the collectives that gather them back.
    """
    none = ops.full((1, 1), weights[0].shape[0], dtype=ms.int32)
    rows = ops.concat((rows, ops.zeros((1, rows.shape[1]), ms.float32)), 0)
    ids = ops.concat((ids.reshape((-1, 1)), none), 0)
    return WITHOUT_LAST(expert_ffn(rows, ops.ones((rows.shape[0], 1), ms.float32), ids, *weights))


def combine(rows: Tensor, gates: Tensor) -> Tensor:
    """rows (T*K, D) in order of assignment, gates (T, K) -> (T, D) their weighted sums."""
    tokens, k = gates.shape
    return (rows.reshape((tokens, k, rows.shape[1])) * gates.expand_dims(2)).sum(1)
