"""Choosing experts, and moving rows into their order and back: the reference of what the kernels do."""

from collections.abc import Callable
from typing import Literal, get_args

import mindspore as ms
from mindspore import Tensor, ops

from mindmoe.ops.reference.expert_ffn import build_block_layout
from mindmoe.ops.slots import FromSlots, ToSlots

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
    order = ops.topk(best, num_groups)[1]  # (T, place) groups from best to worst
    places = ops.broadcast_to(ops.arange(0, num_groups, dtype=ms.int32), (tokens, num_groups))
    wanted = (places < chosen).astype(ms.float32).expand_dims(2)  # (T, place, 1)
    kept = (ops.one_hot(order, num_groups, Tensor(1.0), Tensor(0.0)) * wanted).sum(1).expand_dims(2)
    kept = ops.broadcast_to(kept > 0, grouped.shape)
    return ops.select(kept, grouped, ops.full_like(grouped, NEVER)).reshape((tokens, num_experts))


def softmax_over_chosen(chosen: Tensor) -> Tensor:
    """Softmax (T, K) over the chosen logits.

    Over one value it is 1 without gradient. In PyNative, MindSpore 2.9 moreover gives every later softmax of a process
    a wrong gradient once the first was over an axis of length 1.
    """
    return ops.softmax(chosen, -1) if chosen.shape[1] > 1 else ops.ones_like(chosen)


def build_route(
    k: int,
    score: Score = "softmax_after_topk",
    norm_topk: bool = True,
    scale: float = 1.0,
    groups: int = 1,
    topk_groups: int = 1,
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Returns route(logits (T, E), bias (E) or None) -> gates (T, K), ids (T, K) int32, best first.

    The bias (arXiv 2408.15664) decides which experts are chosen, never how much they weigh.

    Args:
        k: experts per token.
        score: `softmax_after_topk` weighs by a softmax over the chosen logits, the others by the chosen scores.
        norm_topk: whether those are divided by their sum.
        scale: factor of the gates.
        groups: of equal size and consecutive numbers; only the best `topk_groups` may be chosen from.
        topk_groups: see groups.
    """

    def route(logits: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        if score == "sigmoid":
            scores = ops.sigmoid(logits)
        else:
            scores = logits if score == "softmax_after_topk" else ops.softmax(logits, -1)
        ranking = ops.stop_gradient(scores)
        if bias is not None:
            ranking = ranking + ops.stop_gradient(bias)
        if groups > 1:
            ranking = limit_groups(ranking, groups, topk_groups)
        ids = ops.topk(ranking, k)[1].astype(ms.int32)
        chosen = ops.gather_elements(scores, 1, ids)
        if score == "softmax_after_topk":
            gates = softmax_over_chosen(chosen)
        elif norm_topk:
            gates = chosen / (chosen.sum(-1, keepdims=True) + 1e-20)
        else:
            gates = chosen
        return gates * scale, ids

    return route


def build_permute(num_experts: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Returns permute(x (T, D), ids (T, K)) -> rows (T*K, D), slot (T, K) int32, counts (E) int32.

    Rows are in order of expert, by token inside an expert, zeros after the last; slot is the row of an assignment, -1
    where it is dropped, which an id outside 0..E-1 says.
    """
    layout, to_slots, on, off = build_block_layout(1), ToSlots(), Tensor(1.0), Tensor(0.0)

    def permute(x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat = ids.reshape(-1)
        flat = ops.select((flat >= 0) & (flat < num_experts), flat, ops.full_like(flat, num_experts))
        slot, source, _ = layout(flat, num_experts)
        rows = to_slots(x, slot, source)[: flat.shape[0]]
        slot = ops.select(flat < num_experts, slot, ops.full_like(slot, -1)).reshape(ids.shape)
        return rows, slot, ops.one_hot(flat, num_experts, on, off).sum(0).astype(ms.int32)

    return permute


def build_combine() -> Callable[..., Tensor]:
    """Returns combine(rows (R, D), slot (T, K), gates (T, K), counts (E)) -> (T, D).

    It is the sum over k of gates * rows[slot]; slot -1 adds nothing. Only the kernels need counts.
    """
    from_slots = FromSlots()

    def combine(rows: Tensor, slot: Tensor, gates: Tensor, counts: Tensor | None) -> Tensor:
        num, flat = rows.shape[0], slot.reshape(-1)
        flat = ops.select(flat >= 0, flat, ops.full_like(flat, num))
        index = ops.arange(0, flat.shape[0], dtype=ms.int32)
        source = ops.tensor_scatter_elements(ops.full((num + 1,), flat.shape[0], dtype=ms.int32), flat, index)[:-1]
        chosen = from_slots(rows, flat, source).reshape((*slot.shape, -1))
        return (chosen * gates.expand_dims(2)).sum(1)

    return combine
