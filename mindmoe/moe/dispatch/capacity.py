"""Bounding an expert's load: assignments beyond its capacity are dropped, the lowest gates first.

The bound holds in every chunk of consecutive tokens of a sequence, by default in every sequence. A chunk never
crosses ranks, so what is dropped does not depend on the layout of a run.
"""

from collections.abc import Callable

import mindspore as ms
from mindspore import Tensor, ops

from mindmoe.moe.config import MoeConfig
from mindmoe.moe.dispatch.sizes import capacity_rows, chunk_tokens


def build_capacity_limit(moe: MoeConfig, seq_length: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns limit(gates (T, K), ids (T, K)) -> ids with num_experts in place of a dropped assignment."""
    num_experts, chunk = moe.num_experts, chunk_tokens(moe, seq_length)
    capacity = capacity_rows(moe, chunk)
    on, off = Tensor(1.0), Tensor(0.0)

    def limit(gates: Tensor, ids: Tensor) -> Tensor:
        slots = chunk * ids.shape[1]
        # (T, K) -> (chunks, chunk * K): assignments of a chunk compete among themselves.
        chunked = ids.reshape((-1, slots))
        # Highest gate first; the choice of what is dropped has no gradient.
        order = ops.argsort(ops.stop_gradient(-gates).reshape((-1, slots)), -1).astype(ms.int32)
        sorted_ids = ops.gather_elements(chunked, 1, order)
        chosen = ops.one_hot(sorted_ids, num_experts, on, off)
        # Before each assignment, how many of its expert have a higher gate; 0 for one that is dropped already.
        rank = ((ops.cumsum(chosen, 1) - chosen) * chosen).sum(-1)
        kept = ops.select(rank < capacity, sorted_ids, ops.full_like(sorted_ids, num_experts))
        # `order` is a permutation: writing through it puts every id back in its place.
        return ops.tensor_scatter_elements(kept, order, kept, 1).reshape(ids.shape)

    return limit
