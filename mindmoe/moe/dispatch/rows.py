"""What the dispatchers share: tokens with their assignments as one tensor, and rows that each have one expert."""

from collections.abc import Callable

import mindspore as ms
from mindspore import Tensor, ops

ExpertFfn = Callable[..., Tensor]
Weights = tuple[Tensor, Tensor, Tensor, Tensor]
"""gate_up (E, D, 2F), its bias (E, 2F), down (E, F, D), its bias (E, D): this rank's part of them."""


def pack_tokens(x: Tensor, gates: Tensor, ids: Tensor) -> Tensor:
    """x (.., D) with T rows, gates (T, K), ids (T, K) -> (T, D + 2K) fp32: what travels of a token in one message."""
    tokens = x.astype(ms.float32).reshape((-1, x.shape[-1]))
    # ids as fp32 are exact: a run has at most 65,535 experts.
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
    # To an expert FFN, `count` means dropped.
    return ops.select(held, shifted, ops.full_like(shifted, count))
