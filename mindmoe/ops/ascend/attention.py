"""Flash attention with sinks on the Ascend C kernels."""

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, float32, nn, ops

from mindmoe.ops.ascend.pack import Pack
from mindmoe.ops.contract import AttentionOp, OpShape, Precision
from mindmoe.ops.rope import rope_tables
from mindmoe.ops.zeros import zeros_like

_NO_SINK = -1e30  # its exponential is exactly 0 beside any score


class Attention(nn.Cell):
    """softmax(q k^T * scale, with a sink logit per head in the denominator) v: causal, in a window, in a document.

    Args:
        pack: where the kernels come from.
        scale: factor of the scores.
        window: visible tokens of a query, itself included; 0 for all.
    """

    def __init__(self, pack: Pack, scale: float, window: int = 0):
        super().__init__(auto_prefix=False)
        self.inner = _Attention(pack, scale, window)

    def construct(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, starts: Tensor) -> Tensor:
        """(B, H, S, hd) like q; all of one dtype, fp32 or bf16.

        Args:
            q: (B, H, S, hd) after rotation.
            k: (B, KV, S, hd) after rotation.
            v: (B, KV, S, hd).
            sinks: (H) fp32.
            starts: (B, S) int32, where the document of each token begins; never decreasing along a row.
        """
        return self.inner(q, k, v, sinks, starts)[0]


class _Attention(nn.Cell):
    """Also returns the log-denominators (B, H, S), which the backward pass starts from."""

    def __init__(self, pack: Pack, scale: float, window: int):
        super().__init__(auto_prefix=False)
        attributes = (window, float(scale))
        self.forward, self.attributes = pack.op(
            "Attention", lambda q, *_: (q, q[:3]), lambda q, *_: (q, float32), *attributes
        )
        # rowsum(dout * out): the term that the softmax's gradient subtracts, and with lse the gradient of the sinks.
        self.delta, self.delta_attributes = pack.op(
            "AttentionDelta", lambda dout, out, lse, sinks, *_: (lse, sinks), lambda *_: (float32, float32)
        )
        self.grad_query, _ = pack.op("AttentionGradQuery", lambda q, *_: q, lambda q, *_: q, *attributes)
        self.grad_key_value, _ = pack.op(
            "AttentionGradKeyValue", lambda q, k, v, *_: (k, v), lambda q, k, v, *_: (k, v), *attributes
        )

    def construct(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward(q, k, v, sinks, starts, *self.attributes)

    def bprop(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, starts: Tensor, out: tuple, dout: tuple
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        delta, dsinks = self.delta(dout[0], out[0], out[1], sinks, *self.delta_attributes)
        # q and k, v have kernels of their own: each row of a gradient has one owner and one order of summation.
        inputs = (q, k, v, dout[0], out[1], delta, starts)
        dq = self.grad_query(*inputs, *self.attributes)
        dk, dv = self.grad_key_value(*inputs, *self.attributes)
        return dq, dk, dv, dsinks, zeros_like(starts)


def document_starts(segment_ids: Tensor) -> Tensor:
    """(B, S) int32: the position where the run of equal segment_ids (B, S) begins that holds each token."""
    batch, length = segment_ids.shape
    position = ops.broadcast_to(ops.arange(0, length, dtype=ms.int32), (batch, length))
    changed = (segment_ids[:, 1:] != segment_ids[:, :-1]).astype(ms.int32)
    first = ops.concat((ops.zeros((batch, 1), ms.int32), changed), 1)
    # The last boundary at or before each token; fp32 holds positions exactly below 2^24.
    return ops.cummax((first * position).astype(float32), 1)[0].astype(ms.int32)


def build_attention(shape: OpShape, pack: Pack) -> Callable[[int], AttentionOp]:
    """Attention by window; rotation is MindSpore's."""
    cos, sin = rope_tables(shape.model, shape.seq_length)
    return lambda window: _attention(pack, cos, sin, shape.model.head_dim, window, shape.documents, shape.precision)


def _attention(
    pack: Pack, cos: np.ndarray, sin: np.ndarray, head_dim: int, window: int, documents: bool, precision: Precision
) -> AttentionOp:
    half, dtype = head_dim // 2, ms.bfloat16 if precision == "bf16" else float32
    cos_t, sin_t = Tensor(cos[None, None]), Tensor(sin[None, None])
    op = Attention(pack, head_dim**-0.5, window)

    def heads(x: Tensor) -> Tensor:  # (B, S, N*hd) -> (B, N, S, hd)
        return x.astype(float32).reshape((x.shape[0], x.shape[1], -1, head_dim)).transpose((0, 2, 1, 3))

    def rotate(x: Tensor) -> Tensor:
        a, b = x[..., :half], x[..., half:]
        c, s = cos_t[:, :, : x.shape[2]], sin_t[:, :, : x.shape[2]]
        return ops.concat((a * c - b * s, b * c + a * s), -1)

    def attention(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, segment_ids: Tensor) -> Tensor:
        batch, length = q.shape[0], q.shape[1]
        # One document a row where documents are not kept apart.
        starts = document_starts(segment_ids) if documents else zeros_like(segment_ids)
        # The kernel always takes a sink; this one changes nothing.
        if sinks is None:
            sinks = ops.full((q.shape[2] // head_dim,), _NO_SINK, dtype=float32)
        # Rotated in fp32, rounded to the kernels' type once.
        out = op(rotate(heads(q)).astype(dtype), rotate(heads(k)).astype(dtype), heads(v).astype(dtype), sinks, starts)
        return out.astype(float32).transpose((0, 2, 1, 3)).reshape((batch, length, -1))

    return attention
