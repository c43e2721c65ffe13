"""Experts choose tokens: perfect balance, at the price of looking at later tokens (arXiv 2202.09368)."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from mindmoe.config.schema import PositiveInt32
from mindmoe.moe.router.base import Named, Router, Routing
from mindmoe.moe.router.problems import slot_problems

if TYPE_CHECKING:
    from mindspore import Tensor

    from mindmoe.moe.config import MoeConfig


class ExpertChoice(Router):
    """Each expert takes the T * num_experts_per_tok / E tokens that score it highest (arXiv 2202.09368).

    For training research only: which tokens an expert takes depends on later ones. A token keeps at most `k_max`.
    """

    causal: ClassVar[bool] = False

    type: Literal["expert_choice"]
    k_max: PositiveInt32

    def slots(self, moe: "MoeConfig") -> int:
        """k_max."""
        return self.k_max

    def mean_slots(self, moe: "MoeConfig") -> float:
        """num_experts_per_tok: experts take no more."""
        return min(self.k_max, moe.num_experts_per_tok)

    def mean_range(self, moe: "MoeConfig") -> tuple[float, float]:
        """From one, if all experts take the same tokens and those keep k_max, to num_experts_per_tok."""
        return 0.0, self.mean_slots(moe)

    def problems(self, moe: "MoeConfig") -> Iterator[str]:
        """More slots than experts."""
        yield from slot_problems(moe, self.k_max, "router.k_max")

    def build(self, moe: "MoeConfig") -> Routing:
        """The tokens of a rank's micro-batch compete for ceil(T * k / E) places an expert."""
        import mindspore as ms
        from mindspore import ops

        from mindmoe.moe.router.scores import gate, ranking_of, score, unused
        from mindmoe.ops.routing import NEVER

        config, k, num_experts = self, moe.num_experts_per_tok, moe.num_experts

        def route(logits: "Tensor", weights: Named, read: Named) -> Named:
            scores, probs = score(config, logits)
            ranking = ranking_of(scores, weights)
            tokens, experts = ranking.shape
            # Shapes are static: every expert fills as many places, however the scores lie.
            places = min(tokens, math.ceil(tokens * k / num_experts))
            takers = ops.topk(ranking.transpose(1, 0), places)[1].astype(ms.int32)  # (E, places) tokens
            # Flat index t * E + e of each choice, so that one scatter marks them all.
            slot = takers * experts + ops.arange(0, experts, dtype=ms.int32).expand_dims(1)
            taken = ops.tensor_scatter_elements(
                ops.zeros((tokens * experts,), ms.float32), slot.reshape(-1), ops.ones((experts * places,), ms.float32)
            ).reshape((tokens, experts))
            # Turned round to a token's view: of the experts that took it, at most k_max, best first.
            offered = ops.select(taken > 0, ranking, ops.full_like(ranking, NEVER))
            wanted, ids = ops.topk(offered, config.k_max)
            # A token that fewer experts took gets NEVER in the slots left over; half of it tells both kinds apart.
            ids, keep = ids.astype(ms.int32), wanted > 0.5 * NEVER
            gates = gate(config, ops.gather_elements(scores, 1, ids), keep)
            return {"gates": gates, "ids": unused(ids, keep, num_experts), "probs": probs}

        return Routing(route=route)
