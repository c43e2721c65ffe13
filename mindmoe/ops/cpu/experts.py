"""Experts of a mixture, whole or in the parts that expert-parallel dispatchers need.

Whole: `Experts`. In parts: `Permute` sorts tokens by expert, `Experts` takes the rows with one expert each, `Combine`
sums each token's rows.
"""

from collections.abc import Callable

from mindspore import Tensor, float32, int32, nn

from mindmoe.ops.contract import CombineOp, OpShape
from mindmoe.ops.cpu.pack import STORAGE, Outputs, Pack, Precision, load, no_gradient, settings


class Experts(nn.Cell):
    """y = sum over k of gates[:, k] * expert[ids[:, k]](x), dropless and deterministic.

    expert(x) = (min(g, limit) * sigmoid(alpha * min(g, limit)) * (clip(u, -limit, limit) + 1)) @ down + down_bias with
    g and u the even and odd columns of x @ gate_up + gate_up_bias (gpt-oss).

    Args:
        precision: of the products' operands, and of what is kept for the backward pass.
        alpha, limit: of the SwiGLU.
        out: storage of y.
        pack: the library, by default the best of this machine.
    """

    def __init__(
        self,
        precision: Precision = "fp32",
        alpha: float = 1.702,
        limit: float = 7.0,
        out: Precision = "fp32",
        pack: Pack | None = None,
    ):
        super().__init__()
        self.inner = _Experts(precision, alpha, limit, out, pack or load())

    def construct(
        self,
        x: Tensor,
        gates: Tensor,
        ids: Tensor,
        gate_up: Tensor,
        gate_up_bias: Tensor,
        down: Tensor,
        down_bias: Tensor,
    ) -> Tensor:
        """See the contract; any id outside 0..E-1 is a dropped assignment."""
        return self.inner(x, gates, ids, gate_up, gate_up_bias, down, down_bias)[0]


class _Experts(nn.Cell):
    """Also returns the inputs of the SwiGLU (T*K, 2I), in order of expert, for the backward pass."""

    def __init__(self, precision: Precision, alpha: float, limit: float, out: Precision, pack: Pack):
        super().__init__()
        self.settings = settings(precision == "bf16", alpha, limit)
        self.forward = pack.op(
            "experts_forward",
            # One row of SwiGLU inputs for each assignment; weights are (E, D, 2F), so w1[2] is 2F.
            lambda x, gates, ids, w1, *_: (x, (ids[0] * ids[1], w1[2])),
            lambda *_: (STORAGE[out], STORAGE[precision]),
            (out, precision),
        )
        self.backward = pack.op(
            "experts_backward",
            lambda dy, x, gates, ids, *weights: (x, gates, *weights[:4]),
            lambda dy, x, gates, ids, *weights: (x, gates, *weights[:4]),
        )

    def construct(
        self, x: Tensor, gates: Tensor, ids: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
    ) -> Outputs:
        return self.forward(x, gates, ids, w1, b1, w2, b2, self.settings)

    def bprop(
        self,
        x: Tensor,
        gates: Tensor,
        ids: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        out: Outputs,
        dout: Outputs,
    ) -> Outputs:
        # Only y has a gradient; the kept inputs of the SwiGLU are for this pass alone.
        dx, dgates, dw1, db1, dw2, db2 = self.backward(dout[0], x, gates, ids, w1, b1, w2, b2, out[1], self.settings)
        return dx, dgates, no_gradient(ids), dw1, db1, dw2, db2


class Permute(nn.Cell):
    """Copies of tokens in order of expert, by token inside an expert.

    Args:
        num_experts: E.
        pack: the library, by default the best of this machine.
    """

    def __init__(self, num_experts: int, pack: Pack | None = None):
        super().__init__()
        pack = pack or load()
        self.settings = settings(num_experts)
        self.forward = pack.op(
            "permute_forward",
            lambda x, ids, s: ((ids[0] * ids[1], x[1]), ids, (num_experts,)),
            lambda x, ids, s: (x, int32, int32),
            num_experts,  # the variant: the shape of counts depends on it
        )
        self.backward = pack.op("permute_backward", lambda drows, slot: (slot[0], drows[1]), lambda drows, slot: drows)

    def construct(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the contract."""
        return self.forward(x, ids, self.settings)

    def bprop(self, x: Tensor, ids: Tensor, out: tuple, dout: tuple) -> tuple[Tensor, Tensor]:
        """Gradient of x: the sum over its rows."""
        # Slots and counts are integers and have none.
        return self.backward(dout[0], out[1]), no_gradient(ids)


class Combine(nn.Cell):
    """The sum over k of gates[:, k] * rows[slot[:, k]]; slot -1 adds nothing."""

    def __init__(self, pack: Pack | None = None):
        super().__init__()
        pack = pack or load()
        self.forward = pack.op("combine_forward", lambda rows, slot, gates: (slot[0], rows[1]), lambda *_: float32)
        self.backward = pack.op(
            "combine_backward", lambda dy, rows, slot, gates: (rows, gates), lambda dy, rows, slot, gates: (rows, gates)
        )

    def construct(self, rows: Tensor, slot: Tensor, gates: Tensor) -> Tensor:
        """(T, D) of rows (R, D), slot (T, K) int32 and gates (T, K)."""
        return self.forward(rows, slot, gates)

    def bprop(self, rows: Tensor, slot: Tensor, gates: Tensor, y: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of rows and gates."""
        drows, dgates = self.backward(dy, rows, slot, gates)
        return drows, no_gradient(slot), dgates


def build_expert_ffn(shape: OpShape, pack: Pack) -> Experts:
    """The whole of it in one op."""
    return Experts(shape.precision, shape.model.swiglu_alpha, shape.model.swiglu_limit, "fp32", pack)


def build_permute(shape: OpShape, pack: Pack) -> Callable[[int], Permute]:
    """A permutation by number of targets."""
    return lambda targets: Permute(targets, pack)


def build_combine(shape: OpShape, pack: Pack) -> CombineOp:
    """It needs no counts."""
    op = Combine(pack)

    def combine(rows: Tensor, slot: Tensor, gates: Tensor, counts: Tensor | None) -> Tensor:
        return op(rows, slot, gates)

    return combine
