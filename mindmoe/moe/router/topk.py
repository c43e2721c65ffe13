"""Static top-k selection with softmax or sigmoid scores, selection bias and group limit."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from mindmoe.config.schema import PositiveInt32
from mindmoe.moe.router.base import Named, Router, Routing
from mindmoe.moe.router.problems import group_problems

if TYPE_CHECKING:
    from mindspore import Tensor

    from mindmoe.moe.config import MoeConfig


class TopK(Router):
    """Static top-k. With `num_groups` > 1 only the best `topk_groups` groups may be chosen from (a group's score: the
    sum of its two best experts, arXiv 2412.19437)."""

    type: Literal["static"] = "static"
    num_groups: PositiveInt32 = 1
    topk_groups: PositiveInt32 = 1

    @property
    def expert_groups(self) -> int:
        """num_groups."""
        return self.num_groups

    @property
    def group_share(self) -> float:
        """topk_groups of num_groups."""
        return self.topk_groups / self.num_groups

    def problems(self, moe: "MoeConfig") -> Iterator[str]:
        """Groups that do not divide the experts or cannot hold the choice."""
        yield from group_problems(moe, self.num_groups, self.topk_groups, "router.topk_groups")

    def build(self, moe: "MoeConfig") -> Routing:
        """All of the K slots are in use."""
        import mindspore as ms
        from mindspore import ops

        from mindmoe.moe.router.scores import gate, ranking_of, score
        from mindmoe.ops.routing import limit_groups

        config, k = self, moe.num_experts_per_tok

        def route(logits: "Tensor", weights: Named, read: Named) -> Named:
            scores, probs = score(config, logits)
            ranking = ranking_of(scores, weights)
            if config.num_groups > 1:
                ranking = limit_groups(ranking, config.num_groups, config.topk_groups)
            # From the ranking only the choice is taken: gates are read from the scores, which carry the gradient.
            ids = ops.topk(ranking, k)[1].astype(ms.int32)
            return {"gates": gate(config, ops.gather_elements(scores, 1, ids)), "ids": ids, "probs": probs}

        return Routing(route=route)
