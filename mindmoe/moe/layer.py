"""The mixture-of-experts FFN: score, select, limit, compute and combine.

Shapes use the letters of docs/glossary.md: T tokens, D hidden, E experts, K experts per token, F expert width.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindmoe.moe.config import MoeConfig
from mindmoe.moe.dispatch.capacity import build_capacity_limit
from mindmoe.moe.router.topk import build_topk_router
from mindmoe.ops.fork import Fork
from mindmoe.ops.select import OpSet
from mindmoe.parallel.weights import Weights

RouterStats = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""counts (E), probability sum (E), z sum, entropy sum, dropped: sums over this rank's tokens."""


class MoeLayer(nn.Cell):
    """Routes T tokens to K of E experts each."""

    def __init__(self, moe: MoeConfig, kernels: OpSet, weights: Weights):
        super().__init__(auto_prefix=False)
        self.num_experts = moe.num_experts
        self.router_weight = weights["router.weight"]
        self.router_bias = weights.get("router.bias")
        self.selection_bias = weights.get("router.selection_bias")
        self.gate_up = weights["experts.gate_up_proj"]
        self.gate_up_bias = weights["experts.gate_up_proj_bias"]
        self.down = weights["experts.down_proj"]
        self.down_bias = weights["experts.down_proj_bias"]
        self.score = ops.MatMul(transpose_b=True)  # fp32 whatever the operand precision: routing is decided here
        self.fork = Fork(2)
        self.route = build_topk_router(moe)
        self.limit = build_capacity_limit(moe) if moe.dispatch.kind == "capacity" else None
        assert kernels.expert_ffn is not None, "ops of a dense model"
        self.expert_ffn = kernels.expert_ffn
        self.on, self.off = Tensor(1.0), Tensor(0.0)

    def construct(self, x: Tensor) -> tuple[Tensor, RouterStats]:
        """x (B, S, D) -> y (B, S, D) and the statistics of this layer."""
        to_router, to_experts = self.fork(x)
        logits = self.score(to_router.astype(ms.float32).reshape((-1, x.shape[-1])), self.router_weight)
        if self.router_bias is not None:
            logits = logits + self.router_bias
        gates, ids, probs = self.route(logits, self.selection_bias)
        stats = self.statistics(logits, ids, probs)
        dropped = Tensor(0.0)
        if self.limit is not None:
            ids = self.limit(gates, ids)
            dropped = (ids == self.num_experts).astype(ms.float32).sum()
        y = self.expert_ffn(to_experts, gates, ids, self.gate_up, self.gate_up_bias, self.down, self.down_bias)
        return y, (*stats, dropped)

    def statistics(self, logits: Tensor, ids: Tensor, probs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sums over tokens: counts (E) and entropy carry no gradient, probabilities (E) and z do."""
        counts = ops.one_hot(ids.reshape(-1), self.num_experts, self.on, self.off).sum(0)
        z = ops.logsumexp(logits, 1)
        p = ops.stop_gradient(probs)
        entropy = -(p * ops.log(p + 1e-20)).sum()
        return counts, probs.sum(0), (z * z).sum(), entropy
