"""Experts that are nearly as probable as the best one, as min-p sampling keeps tokens (arXiv 2407.01082)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from mindmoe.config.schema import PositiveInt32, Share
from mindmoe.moe.router.base import Named, Router, Routing
from mindmoe.moe.router.problems import slot_problems

if TYPE_CHECKING:
    from mindspore import Tensor

    from mindmoe.moe.config import MoeConfig


class MinP(Router):
    """Experts with at least `p` times the probability of the token's best one, at most `k_max`.

    Nothing holds the mean number of experts: it follows how sure the router is.
    """

    type: Literal["min_p"]
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
        """A slot is used while its probability is large enough beside the largest; the best one always is."""
        import mindspore as ms
        from mindspore import ops

        from mindmoe.moe.router.scores import gate, ranking_of, score, unused

        config, num_experts = self, moe.num_experts

        def route(logits: "Tensor", weights: Named, read: Named) -> Named:
            scores, probs = score(config, logits)
            ids = ops.topk(ranking_of(scores, weights), config.k_max)[1].astype(ms.int32)
            chosen = ops.stop_gradient(ops.gather_elements(probs, 1, ids))
            most = ops.stop_gradient(probs).max(-1, keepdims=True)
            # A selection bias may put another expert first than the most probable one; no token goes without any.
            first = ops.arange(0, config.k_max, dtype=ms.int32).expand_dims(0) < 1
            keep = ops.logical_or(chosen >= config.p * most, first)
            gates = gate(config, ops.gather_elements(scores, 1, ids), keep)
            return {"gates": gates, "ids": unused(ids, keep, num_experts), "probs": probs}

        return Routing(route=route)
