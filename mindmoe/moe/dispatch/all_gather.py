"""Dispatch by gathering: every rank gets all tokens of the group, computes its part, and the results are summed.

Nothing depends on the routing but the values, so it is dropless in a compiled graph. It moves every token to every
rank: right for few ranks, or for k near the number of ranks.
"""

from mindspore import Tensor, nn

from mindmoe.moe.dispatch.rows import ExpertFfn, local_ids, pack_tokens, unpack_tokens
from mindmoe.parallel.collectives import build_all_gather, build_reduce_scatter
from mindmoe.parallel.groups import Groups


class AllGatherDispatch(nn.Cell):
    """Experts spread over the ep x etp ranks of the group."""

    def __init__(self, expert_ffn: ExpertFfn, groups: Groups):
        super().__init__(auto_prefix=False)
        self.expert_ffn = expert_ffn
        group = groups["ep_etp"]
        self.gather, self.scatter = build_all_gather(group, 0), build_reduce_scatter(group, 0)
        self.place, self.adds_bias = groups["ep"].index, groups["etp"].index == 0

    def construct(
        self, x: Tensor, gates: Tensor, ids: Tensor, gate_up: Tensor, gate_up_bias: Tensor, down: Tensor, bias: Tensor
    ) -> Tensor:
        """x (B, S, D), gates (T, K), ids (T, K), this rank's weights -> (B, S, D)."""
        # (T, D + 2K) of every rank, in one message; its backward pass sums the gradients of all copies.
        everywhere = self.gather(pack_tokens(x, gates, ids))
        tokens, all_gates, all_ids = unpack_tokens(everywhere, gates.shape[1])
        # Experts elsewhere count as dropped: each rank makes the part of the sum that its experts have.
        held = local_ids(all_ids, self.place * gate_up.shape[0], gate_up.shape[0])
        # etp ranks cut an expert's width, so each makes a part of `down`; its bias may be added by one of them only.
        once = bias if self.adds_bias else bias * 0.0
        # The sum over the ranks is the whole result; a rank keeps its own T tokens of it.
        return self.scatter(self.expert_ffn(tokens, all_gates, held, gate_up, gate_up_bias, down, once)).reshape(
            x.shape
        )
