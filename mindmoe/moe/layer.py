"""The mixture-of-experts FFN: score, select, limit, then dispatch, compute and combine.

Shapes use the letters of docs/glossary.md: T tokens, D hidden, E experts, K experts per token, F expert width. Every
rank routes its own tokens once; where the experts live is the dispatcher's business.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindmoe.moe.config import DmrConfig, MoeConfig
from mindmoe.moe.difficulty import predict, told_by
from mindmoe.moe.dispatch.build import build_dispatcher
from mindmoe.moe.dispatch.capacity import build_capacity_limit
from mindmoe.moe.dispatch.slots import build_slot_limit
from mindmoe.moe.router.build import build_router
from mindmoe.ops.contract import OpSet
from mindmoe.ops.zeros import zeros_like
from mindmoe.parallel.config import ParallelConfig
from mindmoe.parallel.groups import Groups
from mindmoe.parallel.weights import Slots, take

RouterStats = tuple[Tensor, ...]
"""counts (E), probability sum (E), z sum, entropy sum, dropped: sums over this rank's tokens; and ids (T, K). Counts
and probabilities are sums over each sequence, (B, E), where there is a loss of them. With dynamic routing also the four
signals of its controllers (mindmoe/moe/router/dmr.py) and the predicted difficulty of each token (T)."""

Sums = tuple[Tensor, Tensor, Tensor, Tensor]


class MoeLayer(nn.Cell):
    """Routes T tokens to at most K of E experts each."""

    def __init__(self, moe: MoeConfig, kernels: OpSet, groups: Groups, slots: Slots, parallel: ParallelConfig):
        super().__init__(auto_prefix=False)
        self.num_experts = moe.num_experts
        self.router_weight = slots["router.weight"]
        self.router_bias = slots.get("router.bias")
        self.selection_bias = slots.get("router.selection_bias")
        self.control = slots.get("router.control")
        self.difficulty_weight = slots.get("router.difficulty.weight")
        self.difficulty_bias = slots.get("router.difficulty.bias")
        self.gate_up = slots["experts.gate_up_proj"]
        self.gate_up_bias = slots["experts.gate_up_proj_bias"]
        self.down = slots["experts.down_proj"]
        self.down_bias = slots["experts.down_proj_bias"]
        self.by_sequence = moe.balance.seq_aux_coef > 0
        self.score = ops.MatMul(transpose_b=True)  # fp32 whatever the operand precision: routing is decided here
        self.fork = kernels.fork(2)
        self.route = build_router(moe)
        self.router = kernels.router
        self.domain = slots.get("router.domain")
        dynamic = moe.router if isinstance(moe.router, DmrConfig) else None
        self.reads_table = dynamic is not None and dynamic.features.has_table
        self.draws = dynamic is not None and dynamic.variant == "random_k"
        self.domains = dynamic.domain.num + 1 if dynamic is not None else 0
        self.shift = ops.MatMul()
        slack = None if dynamic is None else dynamic.budget.slot_slack
        self.limit_slots = None if slack is None else build_slot_limit(moe, slack)
        self.limit = build_capacity_limit(moe, kernels.shape.seq_length) if moe.dispatch.kind == "capacity" else None
        self.experts = build_dispatcher(kernels, moe, groups, parallel)
        self.on, self.off = Tensor(1.0), Tensor(0.0)

    def construct(self, x: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, RouterStats]:
        """x (B, S, D) -> y (B, S, D) and the statistics of this layer.

        What a router reads of the tokens comes after the weights: the features (T, 2 N) of N tables, a draw
        (T) in [0, 1), domains (T) int32.
        """
        to_router, to_experts = self.fork(x)
        if self.router is not None:
            router = (weights[self.router_weight], take(weights, self.router_bias), take(weights, self.selection_bias))
            gates, ids, sums = self.router(to_router, *router)
            kept, more = ids, ()
        else:
            gates, ids, kept, sums, more = self.compose_router(to_router, weights)
        dropped = Tensor(0.0)
        if self.limit is not None:
            kept = self.limit(gates, kept)
        if self.limit is not None or self.limit_slots is not None:
            dropped = sums[0].sum() - (kept < self.num_experts).astype(ms.float32).sum()
        y = self.experts(
            to_experts,
            gates,
            kept,
            weights[self.gate_up],
            weights[self.gate_up_bias],
            weights[self.down],
            weights[self.down_bias],
        )
        return y, (*sums, dropped, ids, *more)

    def compose_router(
        self, x: Tensor, weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor, Sums, tuple[Tensor, ...]]:
        """Any router from plain ops.

        Returns:
            Gates (T, K), ids (T, K), ids without the slots beyond the bound, sums over tokens, and what dynamic routing
            adds to the statistics.
        """
        logits, bias, control, difficulty = self.deciding(x, weights)
        known = None if difficulty is None else ops.stop_gradient(difficulty)
        gates, ids, probs, margins, signals = self.route(logits, bias, control, known)
        kept = ids if self.limit_slots is None else self.limit_slots(margins, ids)
        more: tuple[Tensor, ...] = ()
        if control is not None:
            unknown = zeros_like(ops.stop_gradient(logits)[:, 0])
            more = (*signals, unknown if difficulty is None else difficulty)
        return gates, ids, kept, self.statistics(logits, ids, probs, x.shape[0]), more

    def deciding(
        self, x: Tensor, weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """What a router decides from: logits (T, E), selection bias, control and the difficulty of the tokens (T)."""
        tokens = x.astype(ms.float32).reshape((-1, x.shape[-1]))
        logits = self.score(tokens, weights[self.router_weight])
        if self.router_bias is not None:
            logits = logits + weights[self.router_bias]
        if self.domain is not None:
            chosen = ops.one_hot(weights[-1], self.domains, self.on, self.off)
            logits = logits + self.shift(chosen, weights[self.domain])
        return logits, take(weights, self.selection_bias), take(weights, self.control), self.difficulty(tokens, weights)

    def difficulty(self, tokens: Tensor, weights: tuple[Tensor, ...]) -> Tensor | None:
        """Predicted difficulty (T) of tokens (T, D): by the head, else by a table, else unknown; or the draw."""
        features, place = None, -1 if self.domain is None else -2
        if self.draws:
            return weights[place]
        if self.reads_table:
            features = weights[place]
        weight, bias = take(weights, self.difficulty_weight), take(weights, self.difficulty_bias)
        if weight is not None and bias is not None:
            return predict(weight, bias, tokens, features)
        return None if features is None else told_by(features)[0]

    def statistics(self, logits: Tensor, ids: Tensor, probs: Tensor, sequences: int) -> Sums:
        """Sums over tokens: counts (E) and entropy carry no gradient, probabilities (E) and z do."""
        z = ops.logsumexp(logits, 1)
        p = ops.stop_gradient(probs)
        entropy = -(p * ops.log(p + 1e-20)).sum()
        if self.by_sequence:
            counts = ops.one_hot(ids.reshape((sequences, -1)), self.num_experts, self.on, self.off).sum(1)
            return counts, probs.reshape((sequences, -1, self.num_experts)).sum(1), (z * z).sum(), entropy
        counts = ops.one_hot(ids.reshape(-1), self.num_experts, self.on, self.off).sum(0)
        return counts, probs.sum(0), (z * z).sum(), entropy
