"""Dispatch by all-to-all: each token travels to the ranks of its experts and back.

Two siblings. With a capacity every expert has a fixed number of slots, so shapes are static and the exchange may be
compiled. Without one the sizes follow the routing: the counts are exchanged first and the host waits for them.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindmoe.moe.config import MoeConfig
from mindmoe.moe.dispatch.rows import Weights, pack_tokens, unpack_tokens
from mindmoe.moe.dispatch.sizes import capacity_rows, chunk_tokens
from mindmoe.ops.contract import OpSet
from mindmoe.ops.slots import ToSlots
from mindmoe.parallel.collectives import (
    AllToAll,
    AllToAllV,
    build_all_gather,
    build_reduce_scatter,
    exchanged_counts,
)
from mindmoe.parallel.groups import Group, Groups


class _ExpertTensor(nn.Cell):
    """Around an exchange over ep: the etp ranks that share an expert share their tokens, and sum what they made."""

    def __init__(self, groups: Groups):
        super().__init__(auto_prefix=False)
        group = groups["etp"]
        self.gather, self.scatter = build_all_gather(group, 0), build_reduce_scatter(group, 0)
        self.adds_bias = group.index == 0

    def enter(self, x: Tensor, gates: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, S, D), gates and ids (T, K) -> the same of all etp ranks, x as (T', D)."""
        return unpack_tokens(self.gather(pack_tokens(x, gates, ids)), gates.shape[1])

    def once(self, bias: Tensor) -> Tensor:
        """The bias on one of the ranks whose results are summed."""
        # The etp ranks' results are summed, and each holds the whole bias of `down`.
        return bias if self.adds_bias else bias * 0.0


class PaddedAllToAll(_ExpertTensor):
    """With capacity: (E, slots, D) is exchanged, empty slots included."""

    def __init__(self, kernels: OpSet, moe: MoeConfig, groups: Groups):
        super().__init__(groups)
        self.expert_ffn, self.combine, self.num_experts = kernels.expert_ffn, kernels.combine, moe.num_experts
        self.ranks = groups["ep"].size
        self.chunk = chunk_tokens(moe, kernels.shape.seq_length)
        self.capacity = capacity_rows(moe, self.chunk)
        self.exchange = AllToAll(groups["ep"]) if self.ranks > 1 else None
        self.to_slots = ToSlots()
        self.on, self.off = Tensor(1.0), Tensor(0.0)

    def construct(
        self, x: Tensor, gates: Tensor, ids: Tensor, gate_up: Tensor, gate_up_bias: Tensor, down: Tensor, bias: Tensor
    ) -> Tensor:
        """x (B, S, D), gates (T, K), ids (T, K), this rank's weights -> (B, S, D)."""
        tokens, all_gates, all_ids = self.enter(x, gates, ids)
        slot, source = self.layout(all_ids)
        # Whether a slot is used travels as one more column: only the sender knows.
        used = (source < slot.shape[0]).astype(ms.float32).expand_dims(1)
        rows = ops.concat((self.to_slots(tokens, slot, source), used), 1)
        # (E * C, D + 1), C slots an expert on this rank -> (E / P, P * C, D + 1) flat: its experts' slots of all ranks.
        rows = self.travel(rows, True)
        experts = gate_up.shape[0]
        # The expert of a row follows from its place; empty slots get the number that means dropped.
        number = ops.arange(0, experts, dtype=ms.int32).expand_dims(1)
        number = ops.broadcast_to(number, (experts, rows.shape[0] // experts)).reshape(-1)
        number = ops.select(ops.stop_gradient(rows[:, -1]) > 0.5, number, ops.full_like(number, experts))
        # A row has one expert and weight 1 here: the gates are applied at home and do not travel.
        weights, ones = (gate_up, gate_up_bias, down, self.once(bias)), ops.ones((number.shape[0], 1), ms.float32)
        done = self.expert_ffn(rows[:, :-1], ones, number.expand_dims(1), *weights)
        # M, no slot, is -1 for `combine`.
        slot = ops.select(slot < source.shape[0], slot, ops.full_like(slot, -1)).reshape(all_ids.shape)
        return self.scatter(self.combine(self.travel(done, False), slot, all_gates, None)).reshape(x.shape)

    def layout(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The slot of each assignment (T*K), M where it is dropped, and the assignment in each slot (M)."""
        num = ids.shape[0] * ids.shape[1]
        chunks = ids.shape[0] // self.chunk
        slots = self.num_experts * chunks * self.capacity
        grouped = ids.reshape((chunks, -1))
        chosen = ops.one_hot(grouped, self.num_experts, self.on, self.off)
        # Place among the assignments of the same expert and chunk. It is below the capacity: the limit has run.
        rank = ((ops.cumsum(chosen, 1) - chosen) * chosen).sum(-1).astype(ms.int32)
        chunk = ops.arange(0, chunks, dtype=ms.int32).expand_dims(1)
        # Slots lie by expert, then chunk, then rank.
        slot = (grouped * chunks + chunk) * self.capacity + rank
        slot = ops.select(grouped < self.num_experts, slot, ops.full_like(slot, slots)).reshape(-1)
        # One more for the dropped to write to, cut off again: what is left is the inverse, T*K where a slot is empty.
        empty = ops.full((slots + 1,), num, dtype=ms.int32)
        return slot, ops.tensor_scatter_elements(empty, slot, ops.arange(0, num, dtype=ms.int32))[:-1]

    def travel(self, rows: Tensor, out: bool) -> Tensor:
        """Rows (E * C, ..) by global expert -> by local expert, then by source (`out`), and back."""
        if self.exchange is None:
            return rows
        local = self.num_experts // self.ranks
        width = rows.shape[1]
        if out:
            # Expert e lives on rank e // local: cut by rank, exchanged, then put together by expert.
            sent = rows.reshape((self.ranks, local, -1, width))
            return self.exchange(sent).transpose((1, 0, 2, 3)).reshape((-1, width))
        # The exact inverse: cut by source, exchanged, and rows are in the order in which they left.
        sent = rows.reshape((local, self.ranks, -1, width)).transpose((1, 0, 2, 3))
        return self.exchange(sent).reshape((-1, width))


class DroplessAllToAll(_ExpertTensor):
    """Without capacity: exactly the rows that were assigned are exchanged; op by op only."""

    def __init__(self, kernels: OpSet, moe: MoeConfig, groups: Groups):
        super().__init__(groups)
        self.exchange = RowExchange(kernels, moe.num_experts, groups["ep"])

    def construct(
        self, x: Tensor, gates: Tensor, ids: Tensor, gate_up: Tensor, gate_up_bias: Tensor, down: Tensor, bias: Tensor
    ) -> Tensor:
        """x (B, S, D), gates (T, K), ids (T, K), this rank's weights -> (B, S, D)."""
        tokens, all_gates, all_ids = self.enter(x, gates, ids)
        weights = (gate_up, gate_up_bias, down, self.once(bias))
        return self.scatter(self.exchange(tokens, all_gates, all_ids, weights)).reshape(x.shape)


class RowExchange:
    """Tokens through experts that are spread over a group in equal parts; op by op only.

    Args:
        kernels: with the ops of an expert FFN.
        num_experts: of the group.
        group: where they are.
    """

    def __init__(self, kernels: OpSet, num_experts: int, group: Group):
        self.expert_ffn, self.group = kernels.expert_ffn, group
        self.permute, self.combine = kernels.permute(num_experts), kernels.combine

    def __call__(self, tokens: Tensor, gates: Tensor, ids: Tensor, weights: Weights) -> Tensor:
        """The weighted sum of each token's experts.

        A rank that receives nothing computes one row of zeros without an expert: its weights have a gradient too, and
        with it the collectives that gather them back.

        Args:
            tokens: (T, D) fp32.
            gates: (T, K).
            ids: (T, K) int32 among the experts of the group; their number and more for assignments without one.
            weights: this rank's experts.

        Returns:
            (T, D).
        """
        local = weights[0].shape[0]
        rows, slot, counts = self.permute(tokens, ids)
        # Waits for the device: how much travels must be known before anything can.
        leaving = counts.asnumpy().reshape(self.group.size, local)
        arriving = exchanged_counts(leaving, self.group)  # (source, local expert)
        sent, received = leaving.sum(1).tolist(), arriving.sum(1).tolist()
        # Rows arrive by source, and by expert inside a source: the expert of each follows from the counts alone.
        number = np.repeat(np.tile(np.arange(local), self.group.size), arriving.reshape(-1))
        number = number if number.size else np.array([local])  # none arrived: one row whose id, `local`, means dropped
        # Rows past the assigned ones stay here; they are zeros.
        rows = AllToAllV(self.group, sent, received, number.size)(rows)
        ones = ops.ones((number.size, 1), ms.float32)
        done = self.expert_ffn(rows, ones, Tensor(number[:, None].astype(np.int32)), *weights)
        # The rows come back into the places that `permute` gave them, so slot and counts still hold.
        return self.combine(AllToAllV(self.group, received, sent, rows_of(slot))(done), slot, gates, counts)


def rows_of(slot: Tensor) -> int:
    """The rows of a permutation by slot (T, K)."""
    return slot.shape[0] * slot.shape[1]
