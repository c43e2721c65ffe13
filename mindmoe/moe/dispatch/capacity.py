"""Bounding an expert's load: assignments beyond its capacity are dropped, the lowest gates first."""

import math
from collections.abc import Callable

import mindspore as ms
from mindspore import Tensor, ops

from mindmoe.moe.config import MoeConfig


def capacity_rows(moe: MoeConfig, num_tokens: int) -> int:
    """Rows an expert may take from `num_tokens` tokens: ceil(factor * T * K / E)."""
    return math.ceil(moe.dispatch.capacity_factor * num_tokens * moe.num_experts_per_tok / moe.num_experts)


def build_capacity_limit(moe: MoeConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns limit(gates (T, K), ids (T, K)) -> ids with num_experts in place of a dropped assignment."""
    num_experts = moe.num_experts
    on, off = Tensor(1.0), Tensor(0.0)

    def limit(gates: Tensor, ids: Tensor) -> Tensor:
        capacity = capacity_rows(moe, ids.shape[0])
        order = ops.argsort(ops.stop_gradient(-gates).reshape(-1)).astype(ms.int32)
        sorted_ids = ops.gather(ids.reshape(-1), order, 0)
        chosen = ops.one_hot(sorted_ids, num_experts, on, off)
        rank = ((ops.cumsum(chosen, 0) - chosen) * chosen).sum(-1)
        kept = ops.select(rank < capacity, sorted_ids, ops.full_like(sorted_ids, num_experts))
        return ops.tensor_scatter_elements(kept, order, kept).reshape(ids.shape)

    return limit
