"""Which dispatcher a layer uses: siblings that compute the same, chosen once from the layout of the run."""

from typing import Any

from mindmoe.moe.config import MoeConfig
from mindmoe.moe.dispatch.all_gather import AllGatherDispatch
from mindmoe.moe.dispatch.all_to_all import DroplessAllToAll, PaddedAllToAll
from mindmoe.moe.dispatch.rows import ExpertFfn
from mindmoe.moe.dispatch.two_hop import TwoHopDispatch
from mindmoe.parallel.config import ParallelConfig
from mindmoe.parallel.groups import Groups


def build_dispatcher(
    expert_ffn: ExpertFfn, moe: MoeConfig, groups: Groups, parallel: ParallelConfig, graph: bool, seq_length: int
) -> Any:
    """Returns experts(x, gates, ids, gate_up, gate_up_bias, down, down_bias) -> like x.

    Its arguments: x (B, S, D); gates (T, K); ids (T, K) int32, num_experts where an assignment was dropped; this rank's
    part of the weights.
    """
    if groups["ep_etp"].size == 1:
        return expert_ffn
    match parallel.chosen_dispatcher(moe.dispatch.kind, graph):
        case "all_gather":
            return AllGatherDispatch(expert_ffn, groups)
        case "two_hop":
            return TwoHopDispatch(expert_ffn, groups, moe.num_experts, parallel.node_size)
        case _ if moe.dispatch.kind == "capacity":
            return PaddedAllToAll(expert_ffn, moe, groups, seq_length)
        case _:
            return DroplessAllToAll(expert_ffn, groups)
