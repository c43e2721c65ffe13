"""The mixture-of-experts FFN: score, select, limit, then dispatch, compute and combine.

Shapes use the letters of docs/glossary.md: T tokens, D hidden, E experts, K experts per token, F expert width. Every
rank routes its own tokens once; where the experts live is the dispatcher's business.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindmoe.moe.config import DmrConfig, MoeConfig
from mindmoe.moe.difficulty import predict
from mindmoe.moe.dispatch.build import build_dispatcher
from mindmoe.moe.dispatch.capacity import build_capacity_limit
from mindmoe.moe.dispatch.slots import build_slot_limit
from mindmoe.moe.router.build import build_router
from mindmoe.ops.fork import Fork
from mindmoe.ops.select import OpSet
from mindmoe.parallel.config import ParallelConfig
from mindmoe.parallel.groups import Groups
from mindmoe.parallel.weights import Slots, take

RouterStats = tuple[Tensor, ...]
"""counts (E), probability sum (E), z sum, entropy sum, dropped: sums over this rank's tokens; and ids (T, K). With
dynamic routing also the four signals of its controllers (mindmoe/moe/router/dmr.py) and the predicted difficulty of
each token (T)."""


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
        self.fork = Fork(2)
        self.control = slots.get("router.control")
        self.difficulty_weight = slots.get("router.difficulty.weight")
        self.difficulty_bias = slots.get("router.difficulty.bias")
        dynamic = moe.router if isinstance(moe.router, DmrConfig) else None
        self.reads_table = dynamic is not None and dynamic.features.grad_ema
        self.route = build_router(moe)
        slack = None if dynamic is None else dynamic.budget.slot_slack
        self.limit_slots = None if slack is None else build_slot_limit(moe, slack)
        self.limit = build_capacity_limit(moe, kernels.shape.seq_length) if moe.dispatch.kind == "capacity" else None
        assert kernels.expert_ffn is not None, "ops of a dense model"
        self.experts = build_dispatcher(kernels.expert_ffn, moe, groups, parallel, graph, kernels.shape.seq_length)
        self.on, self.off = Tensor(1.0), Tensor(0.0)

    def construct(self, x: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, RouterStats]:
        """x (B, S, D) -> y (B, S, D) and the statistics of this layer.

        Where the router reads the token table, its features (T, 2) are the last of the weights.
        """
        to_router, to_experts = self.fork(x)
        tokens = to_router.astype(ms.float32).reshape((-1, x.shape[-1]))
        logits = self.score(tokens, weights[self.router_weight])
        if self.router_bias is not None:
            logits = logits + weights[self.router_bias]
        difficulty = self.difficulty(tokens, weights)
        known = None if difficulty is None else ops.stop_gradient(difficulty)
        control = take(weights, self.control)
        gates, ids, probs, margins, signals = self.route(logits, take(weights, self.selection_bias), control, known)
        counts, prob_sum, z_sum, entropy = self.statistics(logits, ids, probs)
        kept = ids
        if self.limit_slots is not None:
            kept = self.limit_slots(margins, kept)
        if self.limit is not None:
            kept = self.limit(gates, kept)
        dropped = counts.sum() - (kept < self.num_experts).astype(ms.float32).sum()
        y = self.experts(
            to_experts,
            gates,
            kept,
            weights[self.gate_up],
            weights[self.gate_up_bias],
            weights[self.down],
            weights[self.down_bias],
        )
        stats = (counts, prob_sum, z_sum, entropy, dropped, ids)
        if control is not None:
            stats = (*stats, *signals, ops.zeros_like(logits[:, 0]) if difficulty is None else difficulty)
        return y, stats

    def difficulty(self, tokens: Tensor, weights: tuple[Tensor, ...]) -> Tensor | None:
        """Predicted difficulty (T) of tokens (T, D): by the head, else by the table alone, else unknown."""
        features = weights[-1] if self.reads_table else None
        weight, bias = take(weights, self.difficulty_weight), take(weights, self.difficulty_bias)
        if weight is not None and bias is not None:
            return predict(weight, bias, tokens, features)
        return None if features is None else features[:, 0]

    def statistics(self, logits: Tensor, ids: Tensor, probs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sums over tokens: counts (E) and entropy carry no gradient, probabilities (E) and z do."""
        counts = ops.one_hot(ids.reshape(-1), self.num_experts, self.on, self.off).sum(0)
        z = ops.logsumexp(logits, 1)
        p = ops.stop_gradient(probs)
        entropy = -(p * ops.log(p + 1e-20)).sum()
        return counts, probs.sum(0), (z * z).sum(), entropy
