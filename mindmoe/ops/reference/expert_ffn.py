"""The experts' MLPs on the tokens that chose them: sort rows into blocks, grouped products, weighted sum back.

Rows are laid out in blocks of equal size that belong to one expert each. The number of blocks has a bound that does
not depend on the routing, so shapes are static, which a compiled graph needs, and nothing is dropped.
"""

from collections.abc import Callable

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindmoe.ops.contract import ExpertFfnOp, OpShape, Precision
from mindmoe.ops.precision import ROUND
from mindmoe.ops.reference.swiglu import clamped_swiglu
from mindmoe.ops.slots import FromSlots, ToSlots
from mindmoe.ops.zeros import zeros_like


class BlockMatmul(nn.Cell):
    """y_n = x_n W[e_n] for blocks n; the backward pass gathers the weights again rather than keep the copies."""

    def __init__(self, precision: Precision):
        super().__init__(auto_prefix=False)
        self.cast = ROUND[precision]
        self.plain = ops.BatchMatMul()
        self.right_t = ops.BatchMatMul(transpose_b=True)
        self.left_t = ops.BatchMatMul(transpose_a=True)

    def construct(self, x: Tensor, w: Tensor, expert: Tensor) -> Tensor:
        """x (N, R, Din), w (E, Din, Dout), expert (N) int32 -> (N, R, Dout)."""
        return self.plain(self.cast(x), ops.gather(self.cast(w), expert, 0))

    def bprop(self, x: Tensor, w: Tensor, expert: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x and w; the weight gradient sums over the blocks of an expert."""
        dout = self.cast(dout)
        dx = self.right_t(dout, ops.gather(self.cast(w), expert, 0))
        # An expert with several blocks gets their sum, one with none zeros: (N, Din, Dout) -> (E, Din, Dout).
        dw = ops.unsorted_segment_sum(self.left_t(self.cast(x), dout), expert, w.shape[0])
        return dx, dw, zeros_like(expert)


def block_rows(num_assignments: int, num_experts: int) -> int:
    """Rows of a block: the power of two next below half an expert's mean load, within 8 and 128.

    Small blocks waste rows on no one, large ones run at a higher rate; each expert wastes half a block on average.
    """
    rows = 8
    while rows < 128 and rows * 4 <= num_assignments // num_experts:
        rows *= 2
    return rows


def build_block_layout(block: int | None = None) -> Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor]]:
    """Returns layout(ids (A) int32, num_experts) -> slot (A), source (N*R), expert (N); num_experts where dropped.

    R rows make a block: `block`, or what `block_rows` finds best.
    """
    on, off = Tensor(1.0), Tensor(0.0)

    def layout(ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
        num = ids.shape[0]
        rows = block or block_rows(num, num_experts)
        # sum_e ceil(n_e / R) is at most A / R + E, whatever the routing: the static bound.
        num_blocks = num // rows + num_experts
        chosen = ops.one_hot(ids, num_experts, on, off)  # (A, E); a dropped assignment is a row of zeros
        # (A): how many assignments before this one chose the same expert; fp32 counts are exact below 2^24.
        rank = ((ops.cumsum(chosen, 0) - chosen) * chosen).sum(-1).astype(ms.int32)
        blocks = ((chosen.sum(0).astype(ms.int32) + (rows - 1)) // rows).astype(ms.float32)
        end = ops.cumsum(blocks, 0)  # (E) first block after those of an expert
        # (E + 1): the last entry is for dropped assignments, so that the gather stays inside.
        first = ops.concat((end - blocks, Tensor([0.0])), 0).astype(ms.int32)
        slot = ops.gather(first, ids, 0) * rows + rank
        # One slot behind the last one for all that is dropped, which the inverse below cuts off again.
        slot = ops.select(ids < num_experts, slot, ops.full_like(slot, num_blocks * rows))
        # The inverse of slot, (M + 1) -> (M); A where nothing is written: ToSlots reads its row of zeros there.
        empty = ops.full((num_blocks * rows + 1,), num, dtype=ms.int32)
        source = ops.tensor_scatter_elements(empty, slot, ops.arange(0, num, dtype=ms.int32))[:-1]
        index = ops.arange(0, num_blocks, dtype=ms.int32).astype(ms.float32).expand_dims(1)
        # (N): how many experts end at or before a block. Past the last used block that is E: such blocks hold
        # zeros, which any expert may compute, for nobody reads the result and its gradient is zero.
        expert = (index >= end.expand_dims(0)).astype(ms.float32).sum(1).astype(ms.int32)
        return slot, source, ops.minimum(expert, num_experts - 1)

    return layout


def build_expert_ffn(shape: OpShape) -> ExpertFfnOp:
    """Blocks of rows through batched products."""
    alpha, limit = shape.model.swiglu_alpha, shape.model.swiglu_limit
    layout, to_slots, from_slots = build_block_layout(), ToSlots(), FromSlots()
    matmul = BlockMatmul(shape.precision)

    def expert_ffn(
        x: Tensor, gates: Tensor, ids: Tensor, gate_up: Tensor, gate_up_bias: Tensor, down: Tensor, down_bias: Tensor
    ) -> Tensor:
        # Tokens -> blocks of rows, (T, D) -> (N, R, D).
        slot, source, expert = layout(ids.reshape(-1), gate_up.shape[0])
        tokens = x.reshape((-1, x.shape[-1]))
        rows = to_slots(tokens, slot, source).reshape((expert.shape[0], -1, x.shape[-1]))
        h = matmul(rows, gate_up, expert) + ops.gather(gate_up_bias, expert, 0).expand_dims(1)
        y = matmul(clamped_swiglu(h, alpha, limit), down, expert) + ops.gather(down_bias, expert, 0).expand_dims(1)
        # Blocks -> assignments (T*K, D), zeros for dropped ones, then the weighted sum over K.
        y = from_slots(y.reshape((-1, x.shape[-1])), slot, source)
        return (y.reshape((gates.shape[0], gates.shape[1], -1)) * gates.expand_dims(2)).sum(1).reshape(x.shape)

    return expert_ffn
