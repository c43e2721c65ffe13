"""Mixture of grouped experts: every group gives each token the same number of experts (arXiv 2505.21411)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from mindmoe.config.schema import PositiveInt32
from mindmoe.moe.router.base import Named, Router, Routing

if TYPE_CHECKING:
    from mindspore import Tensor

    from mindmoe.moe.config import MoeConfig


class Moge(Router):
    """The same number of experts in each group, so that groups on different cards carry equal load (arXiv 2505.21411).

    A group chooses num_experts_per_tok / num_groups experts.
    """

    ranked: ClassVar[bool] = False  # slots run group by group

    type: Literal["moge"]
    num_groups: PositiveInt32

    @property
    def expert_groups(self) -> int:
        """num_groups."""
        return self.num_groups

    def problems(self, moe: "MoeConfig") -> Iterator[str]:
        """Groups that do not divide the experts, or experts per token that groups cannot share."""
        for name, size in (("num_experts", moe.num_experts), ("num_experts_per_tok", moe.num_experts_per_tok)):
            if size % self.num_groups:
                yield f"router.num_groups={self.num_groups} must divide {name}={size}: change router.num_groups"

    def build(self, moe: "MoeConfig") -> Routing:
        """Slots are in the order of the groups, by rank inside a group."""
        import mindspore as ms
        from mindspore import ops

        from mindmoe.moe.router.scores import gate, ranking_of, score

        config, k = self, moe.num_experts_per_tok
        groups, size = self.num_groups, moe.num_experts // self.num_groups

        def route(logits: "Tensor", weights: Named, read: Named) -> Named:
            scores, probs = score(config, logits)
            # A group is a run of consecutive experts: (T, E) -> (T, G, E / G).
            ranking = ranking_of(scores, weights).reshape((-1, groups, size))
            inside = ops.topk(ranking, k // groups)[1].astype(ms.int32)  # (T, G, K / G)
            # Numbers inside a group -> numbers among all experts, (T, K).
            first = (ops.arange(0, groups, dtype=ms.int32) * size).reshape((1, groups, 1))
            ids = (inside + first).reshape((-1, k))
            return {"gates": gate(config, ops.gather_elements(scores, 1, ids)), "ids": ids, "probs": probs}

        return Routing(route=route)
