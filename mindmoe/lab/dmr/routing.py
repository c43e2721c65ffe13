"""Dynamic routing in two stages: how many groups, then how many experts, around a mean that controllers hold.

Stage 1 lets easy tokens choose from few groups and hard ones from many. Stage 2 ranks the experts of those groups and
keeps a slot while it is wanted more than the layer's threshold says. With k_min = k_max, equal groups and alpha = 0 it
is static routing, to the bit. Nothing here sees a label: difficulty is predicted from what precedes a token's routing.
"""

from collections.abc import Callable

import mindspore as ms
from mindspore import Tensor, ops

from mindmoe.lab.dmr.config import Dmr
from mindmoe.lab.dmr.control import (
    ALPHA_SHIFT,
    DIFFICULTY_BINS,
    DYNAMIC,
    GROUP_THRESHOLD,
    LOGIT_SHIFT,
    MARGIN_BINS,
    NORMS,
    NUM_CONTROLS,
    THRESHOLD,
    Bins,
    score_bins,
    table_sizes,
)
from mindmoe.lab.dmr.difficulty import (
    GradientTap,
    build_regression,
    build_table_keys,
    build_table_rows,
    log_norm_of,
    moments,
    others_of,
    predict,
    standardised,
    table_sums,
    token_features,
    told_by,
    uniform_draw,
)
from mindmoe.lab.dmr.slots import build_slot_limit
from mindmoe.moe.config import MoeConfig
from mindmoe.moe.router.base import Learn, Named, Routing
from mindmoe.moe.router.scores import gate, ranking_of, score, unused
from mindmoe.ops.routing import NEVER, limit_groups
from mindmoe.ops.zeros import zeros_like


def build_routing(config: Dmr, moe: MoeConfig) -> Routing:
    """Everything that dynamic routing computes.

    Its signals: histogram of the optional slots' margins (MARGIN_BINS), histogram of difficulty (DIFFICULTY_BINS),
    number of tokens (1), and histograms of each expert's scores (E * score_bins), (1) unless the variant needs them.
    """
    told, draws = config.features.has_table, config.variant == "random_k"
    features = ("draw",) if draws else ("told",) if told else ()
    if config.features.domain:
        features = (*features, "domain")
    return Routing(
        route=_build_route(config, moe),
        features=features,
        prepare=_build_prepare(config) if features else None,
        figures=("predicted",),
        measure=(others_of, log_norm_of) if config.measures_loss else None,
        learn=_build_learn(config),
        tap=_build_tap(config) if config.taps else None,
        sink=NORMS if config.taps else None,
    )


def _build_route(config: Dmr, moe: MoeConfig) -> Callable[[Tensor, Named, Named], Named]:
    budget, groups, k = config.budget, config.groups, moe.num_experts_per_tok
    place = Tensor([list(range(budget.k_max))], ms.int32)  # (1, K)
    drawn, domains = config.drawn(moe), config.domain.num + 1
    on, off, shift = Tensor(1.0), Tensor(0.0), ops.MatMul()
    limit = None if budget.slot_slack is None else build_slot_limit(moe, budget.slot_slack)

    def route(logits: Tensor, weights: Named, read: Named) -> Named:
        if config.features.domain:
            logits = logits + shift(ops.one_hot(read["domain"], domains, on, off), weights["domain"])
        predicted = _difficulty(config, weights, read)
        difficulty = None if predicted is None else ops.stop_gradient(predicted)
        control = weights["control"]
        dynamic = control[DYNAMIC] > 0.5
        scores, probs = score(config, logits * (1.0 + control[LOGIT_SHIFT]))
        ranking = ranking_of(scores, weights)
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
        hardness = ops.zeros((DIFFICULTY_BINS.count,), ms.float32)
        if difficulty is not None:
            hardness = _histogram(difficulty, DIFFICULTY_BINS)
        gates = gate(config, ops.gather_elements(scores, 1, ids), keep)
        ids = unused(ids, keep, moe.num_experts)
        found = {
            "gates": gates,
            "ids": ids,
            "probs": probs,
            "logits": logits,
            "margins": _histogram(margins[:, budget.k_min :], MARGIN_BINS),
            "difficulty": hardness,
            "tokens": ops.full((1,), float(logits.shape[0]), dtype=ms.float32),
            "scores": scored,
            "predicted": zeros_like(ops.stop_gradient(logits)[:, 0]) if predicted is None else predicted,
        }
        if limit is not None:
            # A forced slot is wanted more than any other when slots run out.
            wanted_most = margins + (place < budget.k_min).astype(ms.float32) * -2.0 * NEVER
            found["kept"] = limit(ops.stop_gradient(wanted_most), ids)
        return found

    return route


def _difficulty(config: Dmr, weights: Named, read: Named) -> Tensor | None:
    """Difficulty (T) of tokens: as the head predicts it, else as a table says, else unknown; or the draw."""
    if config.variant == "random_k":
        return read["draw"]
    told = read["told"] if config.features.has_table else None
    if config.features.difficulty_head:
        return predict(weights["difficulty.weight"], weights["difficulty.bias"], read["hidden"], told)
    return None if told is None else told_by(told)[0]


def _build_prepare(config: Dmr) -> Callable[[Named, Named], Named]:
    """Returns prepare(read, shared) -> what tables say of T tokens (T, 2 N), or a draw (T) in [0, 1); domains (T)."""
    keys, names = build_table_keys(config.features), tuple(table_sizes(config, 0))

    def prepare(read: Named, shared: Named) -> Named:
        found = {}
        if config.variant == "random_k":
            found["draw"] = uniform_draw(read["token_id"], read["position"])
        elif config.features.has_table:
            rows = keys(read)
            said = token_features(shared[names[0]], rows[0])
            for place in range(1, len(names)):
                said = ops.concat((said, token_features(shared[names[place]], rows[place])), 1)
            found["told"] = said
        if config.features.domain:
            found["domain"] = read["domain"].reshape(-1)
        return found

    return prepare


def _build_tap(config: Dmr) -> Callable[[Tensor, Named, Named, Tensor, Tensor], Tensor]:
    rows, tapped = build_table_rows(config.features), GradientTap()

    def tap(x: Tensor, read: Named, shared: Named, weight: Tensor, sink: Tensor) -> Tensor:
        return tapped(x, rows(read, shared), weight, sink)

    return tap


def _build_learn(config: Dmr) -> Learn | None:
    """The regression of the difficulty heads, and the sums of the tables where the loss measures them."""
    learns, from_table = config.features.difficulty_head, config.difficulty.target == "table"
    measured = config.features.has_table and config.features.grad_source == "head"
    if not learns and not measured:
        return None
    regression, prepare = build_regression(config.difficulty.loss_coef), _build_prepare(config)
    rows, names = build_table_rows(config.features), tuple(table_sizes(config, 0))

    def learn(told: Named, read: Named, shared: Named, reduce: Callable[[Tensor], Tensor]) -> tuple[Tensor, Named]:
        loss, sums = Tensor(0.0), {}
        if learns:
            mask = told["mask"]
            if from_table:
                target, seen = told_by(ops.stop_gradient(prepare(read, shared)["told"]))
                mask = mask * seen
            else:
                target = told["measured"]
            of_all = reduce(ops.stop_gradient(moments(target, mask)))
            target = target if from_table else standardised(target, of_all)
            loss = regression(told["predicted"], target, mask, of_all[0])
        if measured and "measured" in told:
            size = 0
            for name in names:
                size += shared[name].shape[0]
            sums[NORMS] = ops.stop_gradient(table_sums(told["measured"], rows(read, shared), told["mask"], size))
        return loss, sums

    return learn


def _groups_of(difficulty: Tensor | None, control: Tensor, dynamic: Tensor, easy: int, hard: int) -> Tensor | int:
    """Groups of each token (T, 1) int32: `hard` until routing is dynamic, and where easy = hard."""
    if easy == hard or difficulty is None:
        return hard
    is_easy = ops.logical_and(dynamic, difficulty <= control[GROUP_THRESHOLD])
    return (hard - (hard - easy) * is_easy.astype(ms.int32)).expand_dims(1)


def _margins(config: Dmr, wanted: Tensor, control: Tensor, difficulty: Tensor | None, drawn: range) -> Tensor:
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
