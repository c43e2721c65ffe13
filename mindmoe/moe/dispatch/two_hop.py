"""Hierarchical dispatch: a token is sent to a node once, whatever the number of its experts there; op by op only.

The expert ranks form a grid of nodes x places. The first hop goes between equal places of different nodes and carries
each token with its gates, once for every node that holds one of its experts. The second hop is the ordinary exchange
inside the node. On the way back each node sends one sum.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindmoe.moe.dispatch.all_to_all import RowExchange, rows_of
from mindmoe.moe.dispatch.rows import local_ids, pack_tokens, unpack_tokens
from mindmoe.moe.dispatch.sizes import node_grid
from mindmoe.ops.contract import OpSet
from mindmoe.parallel.collectives import AllToAllV, exchanged_counts
from mindmoe.parallel.groups import Groups


class TwoHopDispatch(nn.Cell):
    """Experts on `ep` ranks, `node_size` of which share a node; experts are whole (etp = 1)."""

    def __init__(self, kernels: OpSet, groups: Groups, num_experts: int, node_size: int):
        super().__init__(auto_prefix=False)
        across, inside = node_grid(groups["ep"].ranks, node_size)
        me = groups.rank
        self.across = groups.of(next(group for group in across if me in group), "ep across nodes")
        self.per_node = num_experts // self.across.size
        node = groups.of(next(group for group in inside if me in group), "ep inside a node")
        self.inside = RowExchange(kernels, self.per_node, node)
        self.permute, self.combine = kernels.permute(self.across.size), kernels.combine

    def construct(
        self, x: Tensor, gates: Tensor, ids: Tensor, gate_up: Tensor, gate_up_bias: Tensor, down: Tensor, bias: Tensor
    ) -> Tensor:
        """x (B, S, D), gates (T, K), ids (T, K), this rank's weights -> (B, S, D)."""
        nodes, tokens = self.across.size, ids.shape[0]
        # (T, nodes): which nodes hold an expert of a token; the last column takes dropped assignments, id E.
        wanted = np.zeros((tokens, nodes + 1), bool)
        np.put_along_axis(wanted, np.minimum(ids.asnumpy() // self.per_node, nodes), True, axis=1)
        wanted = wanted[:, :nodes]
        # For `permute` nodes are the targets, and a token has as many assignments as there are nodes; the number of
        # nodes is outside of them, so it travels only where it is wanted.
        node = Tensor(np.where(wanted, np.arange(nodes), nodes).astype(np.int32))
        rows, slot, counts = self.permute(pack_tokens(x, gates, ids), node)
        leaving = wanted.sum(0).reshape(nodes, 1)
        sent, received = leaving[:, 0].tolist(), exchanged_counts(leaving, self.across)[:, 0].tolist()
        # No tensor is empty: a node that receives nothing gets one row of zeros.
        arrived = AllToAllV(self.across, sent, received, max(1, sum(received)))(rows)
        tokens_here, gates_here, ids_here = unpack_tokens(arrived, ids.shape[1])
        # The gates of experts in other nodes came along; their ids become the number that means dropped.
        here = local_ids(ids_here, self.across.index * self.per_node, self.per_node)
        if not sum(received):  # a row without expert, so that a node without tokens takes the same way as the others
            here = ops.full_like(here, self.per_node)
        done = self.inside(tokens_here, gates_here, here, (gate_up, gate_up_bias, down, bias))
        back = AllToAllV(self.across, received, sent, rows_of(slot))(done)
        # The gates were applied in the nodes: here the nodes' sums are added.
        return self.combine(back, slot, ops.ones(slot.shape, ms.float32), counts).reshape(x.shape)
