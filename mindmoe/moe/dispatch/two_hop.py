"""Hierarchical dispatch: a token is sent to a node once, whatever the number of its experts there; op by op only.

The expert ranks form a grid of nodes x places. The first hop goes between equal places of different nodes and carries
each token with its gates, once for every node that holds one of its experts. The second hop is the ordinary exchange
inside the node. On the way back each node sends one sum.
"""

import numpy as np
from mindspore import Tensor, nn, ops

from mindmoe.moe.dispatch.all_to_all import exchange_rows
from mindmoe.moe.dispatch.rows import WITHOUT_LAST, ExpertFfn, local_ids, pack_tokens, unpack_tokens
from mindmoe.moe.dispatch.sizes import node_grid
from mindmoe.ops.permute import with_zero_row
from mindmoe.parallel.collectives import AllToAllV, exchanged_counts
from mindmoe.parallel.groups import Groups


class TwoHopDispatch(nn.Cell):
    """Experts on `ep` ranks, `node_size` of which share a node; experts are whole (etp = 1)."""

    def __init__(self, expert_ffn: ExpertFfn, groups: Groups, num_experts: int, node_size: int):
        super().__init__(auto_prefix=False)
        self.expert_ffn = expert_ffn
        across, inside = node_grid(groups["ep"].ranks, node_size)
        me = groups.rank
        self.across = groups.of(next(group for group in across if me in group), "ep across nodes")
        self.inside = groups.of(next(group for group in inside if me in group), "ep inside a node")
        self.per_node = num_experts // self.across.size

    def construct(
        self, x: Tensor, gates: Tensor, ids: Tensor, gate_up: Tensor, gate_up_bias: Tensor, down: Tensor, bias: Tensor
    ) -> Tensor:
        """x (B, S, D), gates (T, K), ids (T, K), this rank's weights -> (B, S, D)."""
        nodes, tokens = self.across.size, ids.shape[0]
        wanted = np.zeros((tokens, nodes + 1), bool)
        np.put_along_axis(wanted, np.minimum(ids.asnumpy() // self.per_node, nodes), True, axis=1)
        wanted = wanted[:, :nodes]
        node, token = np.nonzero(wanted.T)  # by node, then by token
        slot = np.full((tokens, nodes), node.size, np.int32)
        slot[token, node] = np.arange(node.size)
        counts = wanted.sum(0).reshape(nodes, 1)
        sent, received = counts[:, 0].tolist(), exchanged_counts(counts, self.across)[:, 0].tolist()
        packed = ops.gather(with_zero_row(pack_tokens(x, gates, ids)), Tensor(token.astype(np.int32)), 0)
        arrived = AllToAllV(self.across, sent, received)(packed)
        # A row without expert goes along, so that a node that no token was sent to takes the same way as the others.
        arrived = ops.concat((arrived, ops.full((1, arrived.shape[1]), -1.0, dtype=arrived.dtype)), 0)
        rows, row_gates, row_ids = unpack_tokens(arrived, ids.shape[1])
        here = local_ids(row_ids, self.across.index * self.per_node, self.per_node)
        done = exchange_rows(self.expert_ffn, rows, row_gates, here, (gate_up, gate_up_bias, down, bias), self.inside)
        back = AllToAllV(self.across, received, sent)(WITHOUT_LAST(done))
        parts = ops.gather(with_zero_row(back), Tensor(slot.reshape(-1)), 0)
        return parts.reshape((tokens, nodes, parts.shape[1])).sum(1).reshape(x.shape)
