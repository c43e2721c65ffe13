"""The mixture-of-experts FFN: score, select, limit, then dispatch, compute and combine.

Shapes use the letters of docs/glossary.md: T tokens, D hidden, E experts, K experts per token, F expert width. Every
rank routes its own tokens once; where the experts live is the dispatcher's business.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindmoe.moe.config import MoeConfig
from mindmoe.moe.dispatch.build import build_dispatcher
from mindmoe.moe.dispatch.capacity import build_capacity_limit
from mindmoe.moe.router.base import Named, Routing
from mindmoe.moe.router.scores import named
from mindmoe.ops.contract import OpSet
from mindmoe.parallel.config import ParallelConfig
from mindmoe.parallel.groups import Groups
from mindmoe.parallel.weights import Slots, below, take

STATISTICS = ("counts", "probs", "z", "entropy", "dropped", "ids")
"""What a layer tells, in this order: sums over this rank's tokens of assignments (E), of probabilities (E), of squared
log-sum-exps, of entropies and of dropped assignments; and ids (T, K). Counts and probabilities are sums over each
sequence, (B, E), where there is a loss of them. What the router tells of itself follows: its signals, its figures. A
plain tuple, for a compiled block gives no gradient to other records; stack_layers (mindmoe/models/decoder.py) names it.
"""

RouterStats = tuple[Tensor, ...]
Sums = tuple[Tensor, Tensor, Tensor, Tensor]


class MoeLayer(nn.Cell):
    """Routes T tokens to at most K of E experts each.

    Args:
        moe: sizes and rules.
        routing: what its router computes.
        told: names of what the router tells of itself.
        kernels: the ops.
        groups: this rank's groups.
        slots: places of its weights.
        parallel: layout of the run.
    """

    def __init__(
        self,
        moe: MoeConfig,
        routing: Routing,
        told: tuple[str, ...],
        kernels: OpSet,
        groups: Groups,
        slots: Slots,
        parallel: ParallelConfig,
    ):
        super().__init__(auto_prefix=False)
        self.num_experts = moe.num_experts
        self.router_weight = slots["router.weight"]
        self.router_bias = slots.get("router.bias")
        self.selection_bias = slots.get("router.selection_bias")
        # The router's own weights and state by name, the selection bias among them; its projection is not among them.
        own = {name: place for name, place in below(slots, "router").items() if name not in ("weight", "bias")}
        self.own, self.places = tuple(own), tuple(own.values())
        self.gate_up = slots["experts.gate_up_proj"]
        self.gate_up_bias = slots["experts.gate_up_proj_bias"]
        self.down = slots["experts.down_proj"]
        self.down_bias = slots["experts.down_proj_bias"]
        self.by_sequence = moe.balance.seq_aux_coef > 0
        self.score = ops.MatMul(transpose_b=True)  # fp32 whatever the operand precision: routing is decided here
        self.fork = kernels.fork(2)
        self.route, self.features, self.told = routing.route, routing.features, told
        self.reads_hidden = "hidden" in moe.router.reads()
        self.router = kernels.router
        # By sequence length and not by T: what is dropped must not depend on the layout of the run.
        self.limit = build_capacity_limit(moe, kernels.shape.seq_length) if moe.dispatch.kind == "capacity" else None
        self.experts = build_dispatcher(kernels, moe, groups, parallel)
        self.on, self.off = Tensor(1.0), Tensor(0.0)

    def construct(self, x: Tensor, given: tuple[Tensor, ...]) -> tuple[Tensor, RouterStats]:
        """x (B, S, D) -> y (B, S, D) and what this layer tells, see `STATISTICS`.

        `given`: the weights of the block, then what the router reads of the tokens, each (T, ..).
        """
        # The block's input has two readers whose gradients are summed; see ops/reference/fork.py.
        to_router, to_experts = self.fork(x)
        dropped = Tensor(0.0)
        told: tuple[Tensor, ...] = ()
        # One op that does all of it, where the sibling has one for this router.
        if self.router is not None:
            router = (given[self.router_weight], take(given, self.router_bias), take(given, self.selection_bias))
            gates, ids, sums = self.router(to_router, *router)
            kept = ids
        else:
            logits, own, read = self.deciding(to_router, given)
            found = self.route(logits, own, read)
            gates, ids = found["gates"], found["ids"]
            kept = ids
            # A router may decide from other logits than the projection's; the z-loss is about those.
            if "logits" in found:
                logits = found["logits"]
            sums = self.statistics(logits, ids, found["probs"], x.shape[0])
            # `ids` stay what was wanted: balancing counts assignments before any is dropped.
            if "kept" in found:
                kept = found["kept"]
                dropped = sums[0].sum() - (kept < self.num_experts).astype(ms.float32).sum()
            for name in self.told:
                told = (*told, found[name])
        if self.limit is not None:
            # On top of what the router gave up itself, so the count of the dropped is taken anew.
            kept = self.limit(gates, kept)
            dropped = sums[0].sum() - (kept < self.num_experts).astype(ms.float32).sum()
        y = self.experts(
            to_experts,
            gates,
            kept,
            given[self.gate_up],
            given[self.gate_up_bias],
            given[self.down],
            given[self.down_bias],
        )
        return y, (*sums, dropped, ids, *told)

    def deciding(self, x: Tensor, given: tuple[Tensor, ...]) -> tuple[Tensor, Named, Named]:
        """What a router decides from: logits (T, E), its weights, and what it reads."""
        tokens = x.astype(ms.float32).reshape((-1, x.shape[-1]))
        logits = self.score(tokens, given[self.router_weight])
        if self.router_bias is not None:
            logits = logits + given[self.router_bias]
        own = {}
        for place in range(len(self.own)):
            own[self.own[place]] = given[self.places[place]]
        # Features are the last of `given`, behind all weights of the block.
        read = named(self.features, given[len(given) - len(self.features) :])
        if self.reads_hidden:
            read["hidden"] = tokens
        return logits, own, read

    def statistics(self, logits: Tensor, ids: Tensor, probs: Tensor, sequences: int) -> Sums:
        """Sums over tokens: counts (E) and entropy carry no gradient, probabilities (E) and z do."""
        # (T): the z-loss is the mean of its square.
        z = ops.logsumexp(logits, 1)
        p = ops.stop_gradient(probs)
        # 1e-20 keeps log(0) away: p log p is then 0.
        entropy = -(p * ops.log(p + 1e-20)).sum()
        if self.by_sequence:
            # (B, S * K) -> (B, S * K, E) -> (B, E); an unused slot, id E, is a row of zeros and counts for no expert.
            counts = ops.one_hot(ids.reshape((sequences, -1)), self.num_experts, self.on, self.off).sum(1)
            return counts, probs.reshape((sequences, -1, self.num_experts)).sum(1), (z * z).sum(), entropy
        counts = ops.one_hot(ids.reshape(-1), self.num_experts, self.on, self.off).sum(0)
        return counts, probs.sum(0), (z * z).sum(), entropy
