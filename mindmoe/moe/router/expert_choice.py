"""Experts choose tokens: perfect balance, at the price of looking at later tokens (arXiv 2202.09368)."""

import math

import mindspore as ms
from mindspore import Tensor, ops

from mindmoe.moe.config import ExpertChoiceConfig, MoeConfig
from mindmoe.moe.router.assignment import Assignment, Route, gate, ranking_of, score, unused
from mindmoe.ops.routing import NEVER


def build_expert_choice_router(moe: MoeConfig) -> Route:
    """Returns route(..) -> assignment; the tokens of the scene compete for ceil(T * k / E) places an expert."""
    config = moe.router
    assert isinstance(config, ExpertChoiceConfig)

    def route(
        logits: Tensor, selection_bias: Tensor | None, control: Tensor | None, difficulty: Tensor | None
    ) -> Assignment:
        scores, probs = score(config, logits)
        ranking = ranking_of(scores, selection_bias)
        tokens, experts = ranking.shape
        places = min(tokens, math.ceil(tokens * moe.num_experts_per_tok / moe.num_experts))
        takers = ops.topk(ranking.transpose(1, 0), places)[1].astype(ms.int32)  # (E, places) tokens
        slot = takers * experts + ops.arange(0, experts, dtype=ms.int32).expand_dims(1)
        taken = ops.tensor_scatter_elements(
            ops.zeros((tokens * experts,), ms.float32), slot.reshape(-1), ops.ones((experts * places,), ms.float32)
        ).reshape((tokens, experts))
        offered = ops.select(taken > 0, ranking, ops.full_like(ranking, NEVER))
        wanted, ids = ops.topk(offered, config.k_max)
        ids, keep = ids.astype(ms.int32), wanted > 0.5 * NEVER
        chosen = ops.gather_elements(scores, 1, ids)
        return gate(config, chosen, keep), unused(ids, keep, moe.num_experts), probs, None, ()

    return route
