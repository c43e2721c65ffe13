"""Dynamic routing in two stages: how many groups, then how many experts, around a mean that controllers hold.

Stage 1 lets easy tokens choose from few groups and hard ones from many. Stage 2 ranks the experts of those groups and
keeps a slot while it is wanted more than the layer's threshold says. With k_min = k_max, equal groups and alpha = 0 it
is static routing, to the bit. Nothing here sees a label: difficulty is predicted from what precedes a token's routing.
"""

import mindspore as ms
from mindspore import Tensor, ops

from mindmoe.moe.config import DmrConfig, MoeConfig
from mindmoe.moe.control import (
    ALPHA_SHIFT,
    DIFFICULTY_BINS,
    DYNAMIC,
    GROUP_THRESHOLD,
    LOGIT_SHIFT,
    MARGIN_BINS,
    NUM_CONTROLS,
    THRESHOLD,
    Bins,
    score_bins,
)
from mindmoe.moe.router.assignment import Assignment, Route, gate, ranking_of, score, unused
from mindmoe.ops.routing import NEVER, limit_groups


def build_dmr_router(moe: MoeConfig) -> Route:
    """Returns route(..) -> assignment.

    Its signals: histogram of the optional slots' margins (MARGIN_BINS), histogram of difficulty (DIFFICULTY_BINS),
    number of tokens (1), and histograms of each expert's scores (E * score_bins), (1) unless the variant needs them.
    """
    config = moe.router
    assert isinstance(config, DmrConfig)
    budget, groups, k = config.budget, config.groups, moe.num_experts_per_tok
    place = Tensor([list(range(budget.k_max))], ms.int32)  # (1, K)
    drawn = config.drawn(moe)

    def route(
        logits: Tensor, selection_bias: Tensor | None, control: Tensor | None, difficulty: Tensor | None
    ) -> Assignment:
        assert control is not None
        dynamic = control[DYNAMIC] > 0.5
        scores, probs = score(config, logits * (1.0 + control[LOGIT_SHIFT]))
        ranking = ranking_of(scores, selection_bias)
        if groups.num_groups > 1:
            many = _groups_of(difficulty, control, dynamic, groups.easy, groups.hard)
            ranking = limit_groups(ranking, groups.num_groups, many)
        scored = ops.zeros((1,), ms.float32)
        if config.variant == "expert_threshold":
            scored = _histograms(ranking, score_bins(config))
            relative = ranking - control[NUM_CONTROLS:]
            ranking = ops.select(dynamic, relative, ranking)
        wanted, ids = ops.topk(ranking, budget.k_max)
        ids = ids.astype(ms.int32)
        margins = _margins(config, wanted, control, difficulty, drawn)
        threshold = control[THRESHOLD] if config.variant in ("threshold", "null") else Tensor(0.0, ms.float32)
        by_margin = ops.logical_or(place < budget.k_min, margins > threshold)
        keep = ops.logical_and(ops.select(dynamic, by_margin, place < k), wanted > 0.5 * NEVER)
        signals = (
            _histogram(margins[:, budget.k_min :], MARGIN_BINS),
            _histogram(difficulty, DIFFICULTY_BINS)
            if difficulty is not None
            else ops.zeros((DIFFICULTY_BINS.count,), ms.float32),
            ops.full((1,), float(logits.shape[0]), dtype=ms.float32),
            scored,
        )
        gates = gate(config, ops.gather_elements(scores, 1, ids), keep)
        # A forced slot is wanted more than any other when slots run out.
        wanted_most = margins + (place < budget.k_min).astype(ms.float32) * -2.0 * NEVER
        return gates, unused(ids, keep, moe.num_experts), probs, ops.stop_gradient(wanted_most), signals

    return route


def _groups_of(difficulty: Tensor | None, control: Tensor, dynamic: Tensor, easy: int, hard: int) -> Tensor | int:
    """Groups of each token (T, 1) int32: `hard` until routing is dynamic, and where easy = hard."""
    if easy == hard or difficulty is None:
        return hard
    is_easy = ops.logical_and(dynamic, difficulty <= control[GROUP_THRESHOLD])
    return (hard - (hard - easy) * is_easy.astype(ms.int32)).expand_dims(1)


def _margins(config: DmrConfig, wanted: Tensor, control: Tensor, difficulty: Tensor | None, drawn: range) -> Tensor:
    """How much each slot (T, K) is wanted; wanted (T, K) are the ranking scores in descending order.

    With `random_k`, the place of difficulty is taken by a uniform draw in [0, 1), which chooses one number of `drawn`.
    """
    if config.variant == "expert_threshold":
        return wanted
    place = ops.arange(0, config.budget.k_max, dtype=ms.float32).expand_dims(0)
    if config.variant == "random_k":
        assert difficulty is not None
        return drawn.start + ops.floor(difficulty * len(drawn)).expand_dims(1) - place - 0.5
    logarithm = wanted if config.score == "softmax_after_topk" else ops.log(ops.maximum(wanted, 1e-9))
    margins = logarithm - logarithm[:, :1] if config.variant == "threshold" else logarithm
    if difficulty is not None:
        margins = margins + (config.features.alpha + control[ALPHA_SHIFT]) * difficulty.expand_dims(1)
    return margins


def _histogram(values: Tensor, bins: Bins) -> Tensor:
    """Counts (bins.count) of values of any shape; those outside fall into the outermost bins."""
    if values.size == 0:  # every slot is forced
        return ops.zeros((bins.count,), ms.float32)
    at = ops.floor((ops.stop_gradient(values).reshape(-1) - bins.low) / bins.width)
    at = ops.clamp(at, 0, bins.count - 1).astype(ms.int32).expand_dims(-1)
    return ops.tensor_scatter_add(ops.zeros((bins.count,), ms.float32), at, ops.ones((at.shape[0],), ms.float32))


def _histograms(ranking: Tensor, bins: Bins) -> Tensor:
    """Counts (E * bins.count) of the scores (T, E) of each expert."""
    tokens, experts = ranking.shape
    at = ops.clamp(ops.floor((ranking - bins.low) / bins.width), 0, bins.count - 1).astype(ms.int32)
    at = (at + ops.arange(0, experts, dtype=ms.int32).expand_dims(0) * bins.count).reshape((-1, 1))
    counts = ops.zeros((experts * bins.count,), ms.float32)
    return ops.tensor_scatter_add(counts, at, ops.ones((tokens * experts,), ms.float32))
