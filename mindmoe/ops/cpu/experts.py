"""Experts of a mixture, whole or in the parts that expert-parallel dispatchers need.

Whole: `Experts`. In parts: `Permute` sorts tokens by expert, `Experts` takes the rows with one expert each, `Combine`
sums each token's rows.
"""

from mindspore import Tensor, float32, int32, nn

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
        ids: Tensor,
        gates: Tensor,
        gate_up_proj: Tensor,
        gate_up_proj_bias: Tensor,
        down_proj: Tensor,
        down_proj_bias: Tensor,
    ) -> Tensor:
        """y (T, D).

        Args:
            x: (T, D).
            ids: (T, K) int32; any number outside 0..E-1, such as E, is a dropped slot that adds nothing.
            gates: (T, K).
            gate_up_proj: (E, D, 2I), gate and up alternating on the last axis.
            gate_up_proj_bias: (E, 2I).
            down_proj: (E, I, D).
            down_proj_bias: (E, D).
        """
        return self.inner(x, ids, gates, gate_up_proj, gate_up_proj_bias, down_proj, down_proj_bias)[0]


class _Experts(nn.Cell):
    """Also returns the inputs of the SwiGLU (T*K, 2I), in order of expert, for the backward pass."""

    def __init__(self, precision: Precision, alpha: float, limit: float, out: Precision, pack: Pack):
        super().__init__()
        self.settings = settings(precision == "bf16", alpha, limit)
        self.forward = pack.op(
            "experts_forward",
            lambda x, ids, g, w1, *_: (x, (ids[0] * ids[1], w1[2])),
            lambda *_: (STORAGE[out], STORAGE[precision]),
            (out, precision),
        )
        self.backward = pack.op(
            "experts_backward",
            lambda dy, x, ids, gates, *weights: (x, gates, *weights[:4]),
            lambda dy, x, ids, gates, *weights: (x, gates, *weights[:4]),
        )

    def construct(
        self, x: Tensor, ids: Tensor, gates: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
    ) -> Outputs:
        return self.forward(x, ids, gates, w1, b1, w2, b2, self.settings)

    def bprop(
        self,
        x: Tensor,
        ids: Tensor,
        gates: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        out: Outputs,
        dout: Outputs,
    ) -> Outputs:
        dx, dgates, dw1, db1, dw2, db2 = self.backward(dout[0], x, ids, gates, w1, b1, w2, b2, out[1], self.settings)
        return dx, no_gradient(ids), dgates, dw1, db1, dw2, db2


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
            lambda x, ids, s: ((ids[0] * ids[1], x[1]), (num_experts,), ids),
            lambda x, ids, s: (x, int32, int32),
            num_experts,
        )
        self.backward = pack.op("permute_backward", lambda drows, rank: (rank[0], drows[1]), lambda drows, rank: drows)

    def construct(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (T*K, D) of x (T, D) and ids (T, K), counts (E) int32, and rank (T, K) int32.

        rank is the row of each slot, -1 for a dropped one (an id outside 0..E-1). Rows past the sum of counts are zero.
        """
        return self.forward(x, ids, self.settings)

    def bprop(self, x: Tensor, ids: Tensor, out: tuple, dout: tuple) -> tuple[Tensor, Tensor]:
        """Gradient of x: the sum over its rows."""
        return self.backward(dout[0], out[2]), no_gradient(ids)


class Combine(nn.Cell):
    """y = sum over k of gates[:, k] * rows[rank[:, k]]."""

    def __init__(self, pack: Pack | None = None):
        super().__init__()
        pack = pack or load()
        self.forward = pack.op("combine_forward", lambda rows, gates, rank: (rank[0], rows[1]), lambda *_: float32)
        self.backward = pack.op(
            "combine_backward", lambda dy, rows, gates, rank: (rows, gates), lambda dy, rows, gates, rank: (rows, gates)
        )

    def construct(self, rows: Tensor, gates: Tensor, rank: Tensor) -> Tensor:
        """y (T, D) of rows (R, D), gates (T, K) and rank (T, K) int32; rank -1 adds nothing."""
        return self.forward(rows, gates, rank)

    def bprop(self, rows: Tensor, gates: Tensor, rank: Tensor, y: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of rows and gates."""
        drows, dgates = self.backward(dy, rows, gates, rank)
        return drows, dgates, no_gradient(rank)
