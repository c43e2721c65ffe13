"""As many experts as it takes to reach a share of the probability (arXiv 2403.07652)."""

import mindspore as ms
from mindspore import Tensor, ops

from mindmoe.moe.config import MoeConfig, TopPConfig
from mindmoe.moe.router.assignment import Assignment, Route, gate, ranking_of, score, unused


def build_top_p_router(moe: MoeConfig) -> Route:
    """Returns route(..) -> assignment; a slot is used while the probabilities before it sum to less than p."""
    config = moe.router
    assert isinstance(config, TopPConfig)

    def route(
        logits: Tensor, selection_bias: Tensor | None, control: Tensor | None, difficulty: Tensor | None
    ) -> Assignment:
        scores, probs = score(config, logits)
        ids = ops.topk(ranking_of(scores, selection_bias), config.k_max)[1].astype(ms.int32)
        chosen = ops.stop_gradient(ops.gather_elements(probs, 1, ids))
        before = ops.cumsum(chosen, 1) - chosen
        first = ops.arange(0, config.k_max, dtype=ms.int32).expand_dims(0) < 1
        keep = ops.logical_or(before < config.p, first)
        gates = gate(config, ops.gather_elements(scores, 1, ids), keep)
        return gates, unused(ids, keep, moe.num_experts), probs, None, ()

    return route
