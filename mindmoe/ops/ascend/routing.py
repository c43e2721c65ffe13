"""Routing on the Ascend C kernels: choose experts, bound their load, move rows into their order and back."""

from collections.abc import Callable

from mindspore import Tensor, float32, int32, nn, ops

from mindmoe.ops.ascend.pack import Pack
from mindmoe.ops.contract import CombineOp, OpShape
from mindmoe.ops.reference import routing
from mindmoe.ops.routing import SCORES, Score
from mindmoe.ops.zeros import zeros_like


class Route(nn.Cell):
    """Gates and numbers of the k experts with the largest score + bias, best first.

    Args:
        pack: where the kernels come from.
        k: experts per token.
        score: `softmax_after_topk` weighs by a softmax over the chosen logits, the others by the chosen scores.
        norm_topk: whether those are divided by their sum.
        scale: factor of the gates.
        groups: of equal size and consecutive numbers; only the best `topk_groups` may be chosen from.
        topk_groups: see groups.
    """

    def __init__(
        self,
        pack: Pack,
        k: int,
        score: Score = "softmax_after_topk",
        norm_topk: bool = True,
        scale: float = 1.0,
        groups: int = 1,
        topk_groups: int = 1,
    ):
        super().__init__(auto_prefix=False)
        kind = SCORES.index(score)
        # Attributes follow the tensors in the order in which kernels/op_host registers them.
        self.forward, self.attributes = pack.op(
            "MoeGating",
            lambda logits, *_: ((logits[0], k), (logits[0], k)),
            lambda *_: (float32, int32),
            k,
            kind,
            norm_topk,
            groups,
            topk_groups,
            float(scale),
        )
        self.backward, self.backward_attributes = pack.op(
            "MoeGatingGrad", lambda logits, *_: logits, lambda logits, *_: logits, kind, norm_topk, float(scale)
        )

    def construct(self, logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Gates (T, K) fp32 and ids (T, K) int32 of logits (T, E), fp32 or bf16, and bias (E) fp32."""
        return self.forward(logits, bias, *self.attributes)

    def bprop(self, logits: Tensor, bias: Tensor, out: tuple, dout: tuple) -> tuple[Tensor, Tensor]:
        """Gradient of the logits through the gates; the choice has none."""
        return self.backward(logits, out[1], dout[0], *self.backward_attributes), zeros_like(bias)


class CapacityLimit(nn.Cell):
    """Drops what exceeds `capacity` assignments of an expert, lowest gate first. It selects, so it has no gradient."""

    def __init__(self, pack: Pack, num_experts: int, capacity: int):
        super().__init__(auto_prefix=False)
        self.forward, self.attributes = pack.op(
            "MoeCapacity", lambda ids, *_: ids, lambda ids, *_: ids, num_experts, capacity
        )

    def construct(self, ids: Tensor, gates: Tensor) -> Tensor:
        """ids (T, K) with num_experts in place of a dropped assignment; gates (T, K) fp32, none negative."""
        return self.forward(ids, gates, *self.attributes)

    def bprop(self, ids: Tensor, gates: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros."""
        return zeros_like(ids), zeros_like(gates)


class Permute(nn.Cell):
    """Copies of token rows in order of expert, by token inside an expert.

    Args:
        pack: where the kernels come from.
        num_experts: E.
        capacity: 0 for rows without gaps; else expert e owns rows e * capacity and following, and drops the rest.
    """

    def __init__(self, pack: Pack, num_experts: int, capacity: int = 0):
        super().__init__(auto_prefix=False)
        self.forward, self.attributes = pack.op(
            "MoePermute",
            # With a capacity every expert owns as many rows, used or not; without, T*K rows lie densely.
            lambda x, ids, *_: ((num_experts * capacity or ids[0] * ids[1], x[1]), ids, (num_experts,)),
            lambda x, *_: (x, int32, int32),
            num_experts,
            capacity,
        )
        # The gradient of a token is a sum over slots, which is MoeCombine with weights of 1.
        self.backward, self.backward_attributes = pack.op(
            "MoeCombine", lambda rows, slot, *_: (slot[0], rows[1]), lambda rows, *_: rows
        )

    def construct(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (R, D), slot (T, K) int32 and counts (E) int32 of x (T, D) and ids (T, K)."""
        return self.forward(x, ids, *self.attributes)

    def bprop(self, x: Tensor, ids: Tensor, out: tuple, dout: tuple) -> tuple[Tensor, Tensor]:
        """Gradient of x: the sum over its rows."""
        ones = ops.ones_like(ids).astype(float32)
        return self.backward(dout[0], out[1], ones, *self.backward_attributes), zeros_like(ids)


class Combine(nn.Cell):
    """The sum over k of gates[:, k] * rows[slot[:, k]]; slot -1 adds nothing.

    Args:
        pack: where the kernels come from.
        capacity: of the layout of the rows, as in `Permute`.
    """

    def __init__(self, pack: Pack, capacity: int = 0):
        super().__init__(auto_prefix=False)
        self.forward, self.attributes = pack.op(
            "MoeCombine", lambda rows, slot, *_: (slot[0], rows[1]), lambda rows, *_: rows
        )
        self.backward, self.backward_attributes = pack.op(
            "MoeCombineGrad",
            lambda dout, rows, slot, *_: (rows, slot),
            lambda dout, rows, *_: (rows, float32),
            capacity,
        )

    def construct(self, rows: Tensor, slot: Tensor, gates: Tensor, counts: Tensor) -> Tensor:
        """(T, D) of rows (R, D), slot (T, K) int32, gates (T, K) fp32 and counts (E) int32 of `Permute`."""
        # `counts` is for the backward pass only.
        return self.forward(rows, slot, gates, *self.attributes)

    def bprop(
        self, rows: Tensor, slot: Tensor, gates: Tensor, counts: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of rows and gates."""
        drows, dgates = self.backward(dout, rows, slot, gates, counts, *self.backward_attributes)
        return drows, zeros_like(slot), dgates, zeros_like(counts)


def build_permute(shape: OpShape, pack: Pack) -> Callable[[int], Permute]:
    """A permutation by number of targets."""
    return lambda targets: Permute(pack, targets)


def build_combine(shape: OpShape, pack: Pack) -> CombineOp:
    """The kernel where rows lie as `Permute` laid them, plain ops elsewhere: its gradient clears rows by the counts."""
    kernel, plain = Combine(pack), routing.build_combine(shape)

    def combine(rows: Tensor, slot: Tensor, gates: Tensor, counts: Tensor | None) -> Tensor:
        return plain(rows, slot, gates, None) if counts is None else kernel(rows, slot, gates, counts)

    return combine
