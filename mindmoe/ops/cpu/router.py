"""A static top-k router in three ops of the CPU pack: scores, selection, statistics."""

import numpy as np
from mindspore import Tensor, float32, nn

from mindmoe.moe.config import MoeConfig
from mindmoe.moe.router.topk import TopK
from mindmoe.ops.contract import OpShape
from mindmoe.ops.cpu.fork import Fork
from mindmoe.ops.cpu.linear import Linear
from mindmoe.ops.cpu.pack import Pack, load
from mindmoe.ops.cpu.router_statistics import RouterStatistics
from mindmoe.ops.cpu.routing import Route


class StaticRouter(nn.Cell):
    """Scores in fp32, the k best of them, and what balancing losses and reports need to know.

    Args:
        moe: the rule of selection.
        pack: the library, by default the best of this machine.
    """

    def __init__(self, moe: MoeConfig, pack: Pack | None = None):
        super().__init__(auto_prefix=False)
        pack, rule = pack or load(), moe.router
        assert isinstance(rule, TopK), "see build_router"
        self.num_experts = moe.num_experts
        # Adds nothing: the op always takes a bias.
        self.no_bias = Tensor(np.zeros(moe.num_experts), float32)
        self.score = Linear("fp32", "fp32", pack)
        self.fork = Fork(2, pack)
        self.route = Route(
            moe.num_experts_per_tok,
            rule.score,
            rule.norm_topk,
            rule.route_scale,
            rule.num_groups,
            rule.topk_groups,
            pack,
        )
        self.statistics = RouterStatistics(rule.score == "sigmoid", pack)

    def construct(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, selection_bias: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """See the contract."""
        logits = self.score(x, weight, bias).reshape((-1, self.num_experts))
        # Both the gates and the balancing sums have gradients at the logits.
        to_route, to_count = self.fork(logits)
        gates, ids = self.route(to_route, self.no_bias if selection_bias is None else selection_bias)
        counts, probabilities, z, entropy = self.statistics(to_count, ids)
        # An inferred shape () would become a Python scalar in a graph: the op gives (1), see cpu/optimizer.py.
        return gates, ids, (counts, probabilities, z.reshape(()), entropy.reshape(()))


def build_router(shape: OpShape, pack: Pack) -> StaticRouter | None:
    """The router, if it is static and has no temperature, and nobody wants sums over sequences."""
    moe = shape.moe
    if moe is None or not isinstance(moe.router, TopK) or moe.router.tau != 1.0 or moe.balance.seq_aux_coef:
        return None
    return StaticRouter(moe, pack)
