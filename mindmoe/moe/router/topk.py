"""Static top-k selection with softmax or sigmoid scores, selection bias and group limit."""

import mindspore as ms
from mindspore import Tensor, ops

from mindmoe.moe.config import MoeConfig, RouterConfig
from mindmoe.moe.router.assignment import Assignment, Route, gate, ranking_of, score
from mindmoe.ops.routing import limit_groups


def build_topk_router(moe: MoeConfig) -> Route:
    """Returns route(..) -> assignment with all of the K slots in use."""
    config, k = moe.router, moe.num_experts_per_tok
    assert isinstance(config, RouterConfig)

    def route(
        logits: Tensor, selection_bias: Tensor | None, control: Tensor | None, difficulty: Tensor | None
    ) -> Assignment:
        scores, probs = score(config, logits)
        ranking = ranking_of(scores, selection_bias)
        if config.num_groups > 1:
            ranking = limit_groups(ranking, config.num_groups, config.topk_groups)
        ids = ops.topk(ranking, k)[1].astype(ms.int32)
        return gate(config, ops.gather_elements(scores, 1, ids)), ids, probs, None, ()

    return route
