"""Static top-k selection with softmax or sigmoid scores, selection bias and group limit."""

from collections.abc import Callable

import mindspore as ms
from mindspore import Tensor, ops

from mindmoe.moe.config import MoeConfig

_NEVER = -1e9  # below any score, so that an excluded expert is never chosen


def _limit_groups(scores: Tensor, num_groups: int, topk_groups: int) -> Tensor:
    """Scores (T, E) with all but the best groups excluded; a group's score is the sum of its two best (2412.19437)."""
    tokens, num_experts = scores.shape
    grouped = scores.reshape((tokens, num_groups, num_experts // num_groups))
    best = ops.topk(grouped, min(2, num_experts // num_groups))[0].sum(-1)
    chosen = ops.topk(best, topk_groups)[1]
    kept = ops.one_hot(chosen, num_groups, Tensor(1.0), Tensor(0.0)).sum(1).expand_dims(2)
    return ops.select(ops.broadcast_to(kept > 0, grouped.shape), grouped, ops.full_like(grouped, _NEVER)).reshape(
        (tokens, num_experts)
    )


def build_topk_router(moe: MoeConfig) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Returns route(logits (T, E), selection_bias (E) or None) -> gates (T, K), ids (T, K) int32, probs (T, E).

    The selection bias (arXiv 2408.15664) decides which experts are chosen, never how much they weigh. `probs` are the
    scores normalised over all experts: what the balancing losses and the entropy are about.
    """
    config, k = moe.router, moe.num_experts_per_tok

    def route(logits: Tensor, selection_bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        after_topk = config.score == "softmax_after_topk"
        if config.score == "sigmoid":
            scores = ops.sigmoid(logits)
            probs = scores / (scores.sum(-1, keepdims=True) + 1e-20)
        else:
            probs = ops.softmax(logits, -1)
            scores = logits if after_topk else probs
        ranking = ops.stop_gradient(scores)
        if selection_bias is not None:
            ranking = ranking + ops.stop_gradient(selection_bias)
        if config.num_groups > 1:
            ranking = _limit_groups(ranking, config.num_groups, config.topk_groups)
        ids = ops.topk(ranking, k)[1].astype(ms.int32)
        chosen = ops.gather_elements(scores, 1, ids)
        if after_topk:
            gates = ops.softmax(chosen, -1)
        elif config.norm_topk:
            gates = chosen / (chosen.sum(-1, keepdims=True) + 1e-20)
        else:
            gates = chosen
        return gates * config.route_scale, ids, probs

    return route
