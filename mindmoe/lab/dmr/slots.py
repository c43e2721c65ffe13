"""Bounding the slots of a micro-batch: with dynamic routing their number varies, and memory must not."""

from collections.abc import Callable

import mindspore as ms
from mindspore import Tensor, ops

from mindmoe.moe.config import MoeConfig

_ROUND = 512


def slot_rows(moe: MoeConfig, num_tokens: int, slack: float) -> int:
    """Slots that `num_tokens` tokens may use: T * k * (1 + slack), rounded up to 512, at most all."""
    rows = num_tokens * moe.num_experts_per_tok * (1.0 + slack)
    return min(-(-int(-(-rows // 1)) // _ROUND) * _ROUND, num_tokens * moe.router.slots(moe))


def build_slot_limit(moe: MoeConfig, slack: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns limit(margins (T, K), ids (T, K)) -> ids with num_experts where a slot is dropped, least wanted first."""
    num_experts = moe.num_experts

    def limit(margins: Tensor, ids: Tensor) -> Tensor:
        rows = slot_rows(moe, ids.shape[0], slack)
        if rows >= ids.shape[0] * ids.shape[1]:
            return ids
        used = ids.reshape(-1) < num_experts
        wanted = ops.select(used, margins.reshape(-1), ops.full_like(margins.reshape(-1), -3e9))
        order = ops.argsort(-wanted)[:rows].astype(ms.int32)
        kept = ops.full((ids.shape[0] * ids.shape[1],), num_experts, dtype=ms.int32)
        return ops.tensor_scatter_elements(kept, order, ops.gather(ids.reshape(-1), order, 0)).reshape(ids.shape)

    return limit
