"""The mixture-of-experts FFN: score, select, limit, then dispatch, compute and combine.

Shapes use the letters of docs/glossary.md: T tokens, D hidden, E experts, K experts per token, F expert width. Every
rank routes its own tokens once; where the experts live is the dispatcher's business.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindmoe.moe.config import MoeConfig
from mindmoe.moe.dispatch.build import build_dispatcher
from mindmoe.moe.dispatch.capacity import build_capacity_limit
from mindmoe.moe.router.topk import build_topk_router
from mindmoe.ops.select import OpSet
from mindmoe.parallel.config import ParallelConfig
from mindmoe.parallel.groups import Groups
from mindmoe.parallel.weights import Slots, take

RouterStats = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""counts (E), probability sum (E), z sum, entropy sum, dropped: sums over this rank's tokens; and ids (T, K)."""


class MoeLayer(nn.Cell):
    """Routes T tokens to K of E experts each."""

    def __init__(
        self, moe: MoeConfig, kernels: OpSet, groups: Groups, slots: Slots, parallel: ParallelConfig, graph: bool
    ):
        super().__init__(auto_prefix=False)
        self.num_experts = moe.num_experts
        self.router_weight = slots["router.weight"]
        self.router_bias = slots.get("router.bias")
        self.selection_bias = slots.get("router.selection_bias")
        self.gate_up = slots["experts.gate_up_proj"]
        self.gate_up_bias = slots["experts.gate_up_proj_bias"]
        self.down = slots["experts.down_proj"]
        self.down_bias = slots["experts.down_proj_bias"]
        self.score = ops.MatMul(transpose_b=True)  # fp32 whatever the operand precision: routing is decided here
        self.fork = kernels.fork(2)
        self.route = build_topk_router(moe)
        self.router = kernels.router if moe.router.type == "static" else None
        self.limit = build_capacity_limit(moe, kernels.shape.seq_length) if moe.dispatch.kind == "capacity" else None
        assert kernels.expert_ffn is not None, "ops of a dense model"
        self.experts = build_dispatcher(kernels.expert_ffn, moe, groups, parallel, graph, kernels.shape.seq_length)
        self.on, self.off = Tensor(1.0), Tensor(0.0)

    def construct(self, x: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, RouterStats]:
        """x (B, S, D) -> y (B, S, D) and the statistics of this layer."""
        to_router, to_experts = self.fork(x)
        router = (weights[self.router_weight], take(weights, self.router_bias), take(weights, self.selection_bias))
        gates, ids, sums = (self.router or self.compose_router)(to_router, *router)
        kept, dropped = ids, Tensor(0.0)
        if self.limit is not None:
            kept = self.limit(gates, ids)
            dropped = (kept == self.num_experts).astype(ms.float32).sum()
        y = self.experts(
            to_experts,
            gates,
            kept,
            weights[self.gate_up],
            weights[self.gate_up_bias],
            weights[self.down],
            weights[self.down_bias],
        )
        return y, (*sums, dropped, ids)

    def compose_router(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, selection_bias: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Gates (T, K), ids (T, K) and sums over tokens from plain ops."""
        logits = self.score(x.astype(ms.float32).reshape((-1, x.shape[-1])), weight)
        if bias is not None:
            logits = logits + bias
        gates, ids, probs = self.route(logits, selection_bias)
        return gates, ids, self.statistics(logits, ids, probs)

    def statistics(self, logits: Tensor, ids: Tensor, probs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sums over tokens: counts (E) and entropy carry no gradient, probabilities (E) and z do."""
        counts = ops.one_hot(ids.reshape(-1), self.num_experts, self.on, self.off).sum(0)
        z = ops.logsumexp(logits, 1)
        p = ops.stop_gradient(probs)
        entropy = -(p * ops.log(p + 1e-20)).sum()
        return counts, probs.sum(0), (z * z).sum(), entropy
