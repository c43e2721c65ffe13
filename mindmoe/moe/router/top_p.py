"""As many experts as it takes to reach a share of the probability (arXiv 2403.07652)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from mindmoe.config.schema import PositiveInt32, Share
from mindmoe.moe.router.base import Named, Router, Routing
from mindmoe.moe.router.problems import slot_problems

if TYPE_CHECKING:
    from mindspore import Tensor

    from mindmoe.moe.config import MoeConfig


class TopP(Router):
    """The fewest experts whose probabilities add up to `p`, at least one and at most `k_max` (arXiv 2403.07652).

    Nothing holds the mean number of experts: it follows how sure the router is.
    """

    type: Literal["top_p"]
    p: Share
    k_max: PositiveInt32

    def slots(self, moe: "MoeConfig") -> int:
        """k_max."""
        return self.k_max

    def mean_range(self, moe: "MoeConfig") -> tuple[float, float]:
        """Whatever the slots allow."""
        return 1.0, float(self.k_max)

    def problems(self, moe: "MoeConfig") -> Iterator[str]:
        """More slots than experts."""
        yield from slot_problems(moe, self.k_max, "router.k_max")

    def build(self, moe: "MoeConfig") -> Routing:
        """A slot is used while the probabilities before it sum to less than p."""
        import mindspore as ms
        from mindspore import ops

        from mindmoe.moe.router.scores import gate, ranking_of, score, unused

        config, num_experts = self, moe.num_experts

        def route(logits: "Tensor", weights: Named, read: Named) -> Named:
            scores, probs = score(config, logits)
            ids = ops.topk(ranking_of(scores, weights), config.k_max)[1].astype(ms.int32)
            # Slots follow the ranking, bias included; what is summed up to p are probabilities without it.
            chosen = ops.stop_gradient(ops.gather_elements(probs, 1, ids))
            # (T, K): the probability of all better slots, exactly 0 for the first.
            before = ops.cumsum(chosen, 1) - chosen
            first = ops.arange(0, config.k_max, dtype=ms.int32).expand_dims(0) < 1
            keep = ops.logical_or(before < config.p, first)
            gates = gate(config, ops.gather_elements(scores, 1, ids), keep)
            return {"gates": gates, "ids": unused(ids, keep, num_experts), "probs": probs}

        return Routing(route=route)
