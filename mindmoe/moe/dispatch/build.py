"""Which dispatcher a layer uses: siblings that compute the same, chosen once from the layout of the run."""

from typing import Any

from mindmoe.moe.config import MoeConfig
from mindmoe.moe.dispatch.all_gather import AllGatherDispatch
from mindmoe.moe.dispatch.all_to_all import DroplessAllToAll, PaddedAllToAll
from mindmoe.moe.dispatch.two_hop import TwoHopDispatch
from mindmoe.ops.contract import OpSet
from mindmoe.parallel.config import ParallelConfig
from mindmoe.parallel.groups import Groups


def build_dispatcher(kernels: OpSet, moe: MoeConfig, groups: Groups, parallel: ParallelConfig) -> Any:
    """Returns experts(x, gates, ids, gate_up, gate_up_bias, down, down_bias) -> like x.

    Its arguments: x (B, S, D); gates (T, K); ids (T, K) int32, num_experts where an assignment was dropped; this rank's
    part of the weights.
    """
    # Experts are here whole: the op itself is the dispatcher.
    if groups["ep_etp"].size == 1:
        return kernels.expert_ffn
    match parallel.chosen_dispatcher:
        case "all_gather":
            return AllGatherDispatch(kernels.expert_ffn, groups)
        case "two_hop":
            return TwoHopDispatch(kernels, groups, moe.num_experts, parallel.node_size)
        # Only a capacity gives the exchange static shapes.
        case _ if moe.dispatch.kind == "capacity":
            return PaddedAllToAll(kernels, moe, groups)
        case _:
            return DroplessAllToAll(kernels, moe, groups)
