"""The steps from logits to gates that routers share."""

import mindspore as ms
from mindspore import Tensor, ops

from mindmoe.moe.router.base import Named, Router
from mindmoe.ops.routing import NEVER, softmax_over_chosen


def score(config: Router, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Scores that experts are ranked by, and probabilities, both (T, E), of logits (T, E)."""
    if config.tau != 1.0:
        logits = logits / config.tau
    if config.score == "sigmoid":
        scores = ops.sigmoid(logits)
        # 1e-20 for sigmoids that are all 0 in fp32.
        return scores, scores / (scores.sum(-1, keepdims=True) + 1e-20)
    probs = ops.softmax(logits, -1)
    # Before the choice logits rank as their softmax would; its values are needed for the losses only.
    return logits if config.score == "softmax_after_topk" else probs, probs


def ranking_of(scores: Tensor, weights: Named) -> Tensor:
    """Scores (T, E) with the selection bias if there is one (arXiv 2408.15664), without gradient.

    The bias decides who is chosen and never how much one weighs.
    """
    ranking = ops.stop_gradient(scores)
    return ranking + ops.stop_gradient(weights["selection_bias"]) if "selection_bias" in weights else ranking


def gate(config: Router, chosen: Tensor, keep: Tensor | None = None) -> Tensor:
    """Gates (T, K) of the chosen scores (T, K); `keep` (T, K) is False where a slot stays unused, None if none does."""
    if config.score == "softmax_after_topk":
        # NEVER, as its exponential is exactly 0 beside any chosen logit.
        kept = chosen if keep is None else ops.select(keep, chosen, ops.full_like(chosen, NEVER))
        gates = softmax_over_chosen(kept)
        # In a token without any kept slot all are NEVER and the softmax is uniform: this makes its gates 0.
        gates = gates if keep is None else gates * keep.astype(ms.float32)
    else:
        kept = chosen if keep is None else chosen * keep.astype(ms.float32)
        gates = kept / (kept.sum(-1, keepdims=True) + 1e-20) if config.norm_topk else kept
    return gates * config.route_scale


def unused(ids: Tensor, keep: Tensor, num_experts: int) -> Tensor:
    """ids (T, K) with E where `keep` (T, K) is False."""
    return ops.select(keep, ids, ops.full_like(ids, num_experts))


def named(names: tuple[str, ...], values: tuple[Tensor, ...]) -> Named:
    """Tensors by their names, of as many as there are names."""
    found = {}
    for place in range(len(names)):
        found[names[place]] = values[place]
    return found
