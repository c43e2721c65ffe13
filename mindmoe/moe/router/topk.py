"""Static top-k selection with softmax or sigmoid scores, selection bias and group limit."""

from collections.abc import Callable

from mindspore import Tensor, ops

from mindmoe.moe.config import MoeConfig
from mindmoe.ops.routing import build_route


def build_topk_router(moe: MoeConfig) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Returns route(logits (T, E), selection_bias (E) or None) -> gates (T, K), ids (T, K) int32, probs (T, E).

    `probs` are the scores normalised over all experts: what the balancing losses and the entropy are about.
    """
    config = moe.router
    choose = build_route(
        moe.num_experts_per_tok,
        config.score,
        config.norm_topk,
        config.route_scale,
        config.num_groups,
        config.topk_groups,
    )

    def route(logits: Tensor, selection_bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if config.score == "sigmoid":
            scores = ops.sigmoid(logits)
            probs = scores / (scores.sum(-1, keepdims=True) + 1e-20)
        else:
            probs = ops.softmax(logits, -1)
        return *choose(logits, selection_bias), probs

    return route
