"""Steps of choosing experts that routers share."""

from typing import Literal, get_args

import mindspore as ms
from mindspore import Tensor, ops

Score = Literal["softmax_after_topk", "softmax", "sigmoid"]
SCORES: tuple[Score, ...] = get_args(Score)

NEVER = -1e9  # below any score, so that an excluded expert is never chosen


def limit_groups(ranking: Tensor, num_groups: int, chosen: Tensor | int) -> Tensor:
    """Ranking (T, E) with NEVER outside each token's best groups; `chosen` groups, a number or one per token (T, 1).

    A group's score is the sum of its two best experts (arXiv 2412.19437).
    """
    tokens, num_experts = ranking.shape
    grouped = ranking.reshape((tokens, num_groups, num_experts // num_groups))
    best = ops.topk(grouped, min(2, num_experts // num_groups))[0].sum(-1)
    # All groups in order, of which the first `chosen` count: topk takes no number of its own for each token.
    order = ops.topk(best, num_groups)[1]  # (T, place) groups from best to worst
    places = ops.broadcast_to(ops.arange(0, num_groups, dtype=ms.int32), (tokens, num_groups))
    wanted = (places < chosen).astype(ms.float32).expand_dims(2)  # (T, place, 1)
    # (T, place, G) one-hot times (T, place, 1), summed over places: (T, G), then (T, G, 1).
    kept = (ops.one_hot(order, num_groups, Tensor(1.0), Tensor(0.0)) * wanted).sum(1).expand_dims(2)
    kept = ops.broadcast_to(kept > 0, grouped.shape)
    return ops.select(kept, grouped, ops.full_like(grouped, NEVER)).reshape((tokens, num_experts))


def softmax_over_chosen(chosen: Tensor) -> Tensor:
    """Softmax (T, K) over the chosen logits.

    Over one value it is 1 without gradient. In PyNative, MindSpore 2.9 moreover gives every later softmax of a process
    a wrong gradient once the first was over an axis of length 1.
    """
    return ops.softmax(chosen, -1) if chosen.shape[1] > 1 else ops.ones_like(chosen)
