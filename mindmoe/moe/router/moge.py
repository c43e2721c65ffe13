"""Mixture of grouped experts: every group gives each token the same number of experts (arXiv 2505.21411)."""

import mindspore as ms
from mindspore import Tensor, ops

from mindmoe.moe.config import MoeConfig, MogeConfig
from mindmoe.moe.router.assignment import Assignment, Route, gate, ranking_of, score


def build_moge_router(moe: MoeConfig) -> Route:
    """Returns route(..) -> assignment; slots are in the order of the groups, by rank inside a group."""
    config, k = moe.router, moe.num_experts_per_tok
    assert isinstance(config, MogeConfig)
    groups, size = config.num_groups, moe.num_experts // config.num_groups

    def route(
        logits: Tensor, selection_bias: Tensor | None, control: Tensor | None, difficulty: Tensor | None
    ) -> Assignment:
        scores, probs = score(config, logits)
        ranking = ranking_of(scores, selection_bias).reshape((-1, groups, size))
        inside = ops.topk(ranking, k // groups)[1].astype(ms.int32)  # (T, G, K / G)
        first = (ops.arange(0, groups, dtype=ms.int32) * size).reshape((1, groups, 1))
        ids = (inside + first).reshape((-1, k))
        return gate(config, ops.gather_elements(scores, 1, ids)), ids, probs, None, ()

    return route
