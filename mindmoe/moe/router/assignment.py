"""What every router returns, and the steps from logits to gates that they share.

A router is a function, built from the `moe` section and pure:

    route(logits, selection_bias, control, difficulty) -> gates, ids, probs, margins, signals

Its arguments: logits (T, E) fp32; selection_bias (E), which decides who is chosen and never how much one weighs (arXiv
2408.15664), or None; control (C), the state of the layer's controllers (mindmoe/moe/control.py), or None for routers
without; difficulty (T), how hard each token is predicted to be in standard deviations, no gradient, or None; for the
placebo a uniform draw in its place.

It returns gates (T, K), the weight of each chosen expert, 0 in unused slots; ids (T, K) int32, E in unused slots; probs
(T, E), the scores normalised over all experts, which the balancing losses and the entropy are about; margins (T, K),
how much each slot is wanted, or None where nobody can have too many slots; and signals, what the layer's controllers
need beyond that.
"""

from collections.abc import Callable

import mindspore as ms
from mindspore import Tensor, ops

from mindmoe.moe.config import Scoring
from mindmoe.ops.routing import NEVER, softmax_over_chosen

Assignment = tuple[Tensor, Tensor, Tensor, Tensor | None, tuple[Tensor, ...]]
Route = Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None], Assignment]


def score(config: Scoring, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Scores that experts are ranked by, and probabilities, both (T, E), of logits (T, E)."""
    if config.tau != 1.0:
        logits = logits / config.tau
    if config.score == "sigmoid":
        scores = ops.sigmoid(logits)
        return scores, scores / (scores.sum(-1, keepdims=True) + 1e-20)
    probs = ops.softmax(logits, -1)
    return logits if config.score == "softmax_after_topk" else probs, probs


def ranking_of(scores: Tensor, selection_bias: Tensor | None) -> Tensor:
    """Scores with the selection bias, without gradient."""
    ranking = ops.stop_gradient(scores)
    return ranking if selection_bias is None else ranking + ops.stop_gradient(selection_bias)


def gate(config: Scoring, chosen: Tensor, keep: Tensor | None = None) -> Tensor:
    """Gates (T, K) of the chosen scores (T, K); `keep` (T, K) is False where a slot stays unused, None if none does."""
    if config.score == "softmax_after_topk":
        kept = chosen if keep is None else ops.select(keep, chosen, ops.full_like(chosen, NEVER))
        gates = softmax_over_chosen(kept)
        gates = gates if keep is None else gates * keep.astype(ms.float32)
    else:
        kept = chosen if keep is None else chosen * keep.astype(ms.float32)
        gates = kept / (kept.sum(-1, keepdims=True) + 1e-20) if config.norm_topk else kept
    return gates * config.route_scale


def unused(ids: Tensor, keep: Tensor, num_experts: int) -> Tensor:
    """ids (T, K) with E where `keep` (T, K) is False."""
    return ops.select(keep, ids, ops.full_like(ids, num_experts))
