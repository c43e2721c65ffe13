"""Attention of the CPU pack: RoPE, grouped queries, sinks, window and packed documents in one op."""

from collections.abc import Callable

from mindspore import Parameter, Tensor, Type, float32, nn

from mindmoe.ops.contract import AttentionOp, CachedAttentionOp, OpShape
from mindmoe.ops.cpu.pack import STORAGE, Outputs, Pack, Precision, absent, load, no_gradient, settings
from mindmoe.ops.rope import rope_tables
from mindmoe.ops.zeros import zeros_like


class Attention(nn.Cell):
    """softmax(rope(q) rope(k)^T * scale, with a sink logit per head in the denominator) v, causal.

    Query i sees key j if i - window < j <= i and no document boundary lies between them. No S x S buffer.

    Args:
        scale: factor of the scores, usually head_dim ** -0.5.
        window: 0 for full attention [tokens].
        precision: of the products' operands; softmax and sums are fp32.
        out: storage of the result.
        pack: the library, by default the best of this machine.
    """

    def __init__(
        self,
        scale: float,
        window: int = 0,
        precision: Precision = "fp32",
        out: Precision = "fp32",
        pack: Pack | None = None,
    ):
        super().__init__()
        pack = pack or load()
        self.absent = absent()
        self.plain = _Attention(scale, window, precision, out, pack, False)
        self.with_sinks = _Attention(scale, window, precision, out, pack, True)

    def construct(
        self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, sinks: Tensor | None, segment_ids: Tensor
    ) -> Tensor:
        """Attention (B, S, H*hd).

        Args:
            q: (B, S, H*hd) before RoPE.
            k: (B, S, KV*hd) before RoPE.
            v: (B, S, KV*hd).
            cos: (S, hd/2), with any YaRN factor inside.
            sin: (S, hd/2).
            sinks: (H) logits, or None.
            segment_ids: (B, S) int32; a document is a run of equal numbers.
        """
        if sinks is None:
            return self.plain(q, k, v, cos, sin, self.absent, segment_ids)[0]
        return self.with_sinks(q, k, v, cos, sin, sinks, segment_ids)[0]


class _Attention(nn.Cell):
    """Also returns the log-denominators (B, S, H), which the backward pass starts from."""

    def __init__(self, scale: float, window: int, precision: Precision, out: Precision, pack: Pack, has_sinks: bool):
        super().__init__()
        self.settings = settings(precision == "bf16", window, scale, has_sinks)
        self.forward = pack.op(
            "attention_forward",
            # cos is (S, hd/2), so q[2] // (2 * cos[1]) = H.
            lambda q, k, v, cos, *_: (q, (q[0], q[1], q[2] // (2 * cos[1]))),
            lambda *_: (STORAGE[out], float32),
            out,
        )
        self.backward = pack.op(
            "attention_backward",
            lambda do, o, lse, q, k, v, cos, sin, sinks, *_: (q, k, v, sinks),
            lambda do, o, lse, q, k, v, cos, sin, sinks, *_: (q, k, v, sinks),
        )

    def construct(
        self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, sinks: Tensor, segment_ids: Tensor
    ) -> Outputs:
        return self.forward(q, k, v, cos, sin, sinks, segment_ids, self.settings)

    def bprop(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        sinks: Tensor,
        segment_ids: Tensor,
        out: Outputs,
        dout: Outputs,
    ) -> Outputs:
        # Starts from the result and its log-denominators: scores are made again block by block.
        dq, dk, dv, dsinks = self.backward(
            dout[0], out[0], out[1], q, k, v, cos, sin, sinks, segment_ids, self.settings
        )
        return dq, dk, dv, no_gradient(cos), no_gradient(sin), dsinks, no_gradient(segment_ids)


class CachedAttention(nn.Cell):
    """`Attention` for generation: of the next N tokens, given the keys and values of all before them. No gradient.

    Args: as `Attention`.
    """

    def __init__(
        self,
        scale: float,
        window: int = 0,
        precision: Precision = "fp32",
        out: Precision = "fp32",
        pack: Pack | None = None,
    ):
        super().__init__(auto_prefix=False)
        pack = pack or load()
        self.absent = absent()
        # Whether there are sinks is a constant of the op: one primitive, two settings.
        self.without, self.with_sinks = (settings(precision == "bf16", window, scale, has) for has in (False, True))
        # It writes into keys and values, of which MindSpore knows nothing.
        self.forward = pack.op("attention_cached", lambda q, *_: q, lambda *_: STORAGE[out], out)

    def construct(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        sinks: Tensor | None,
        start: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        """Attention (B, N, H*hd); adds the N tokens' keys and values to the cache, in place.

        Args:
            q: (B, N, H*hd) before RoPE.
            k: (B, N, KV*hd) before RoPE.
            v: (B, N, KV*hd).
            cos: (C, hd/2), with any YaRN factor inside.
            sin: (C, hd/2).
            sinks: (H) logits, or None.
            start: (1) int32, the position of the first of the N tokens; start + N is at most C.
            keys: (B, KV, C, hd) in the storage of `precision`: rotated keys of the positions before start.
            values: likewise.
        """
        if sinks is None:
            return self.forward(q, k, v, cos, sin, self.absent, start, keys, values, self.without)
        return self.forward(q, k, v, cos, sin, sinks, start, keys, values, self.with_sinks)


def build_attention(shape: OpShape, pack: Pack) -> Callable[[int], AttentionOp]:
    """Attention by window."""
    cos, sin = (Tensor(table) for table in rope_tables(shape.model, shape.seq_length))

    def attention(window: int) -> AttentionOp:
        op = Attention(shape.model.head_dim**-0.5, window, shape.precision, shape.precision, pack)

        def attend(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, segment_ids: Tensor) -> Tensor:
            # The cell always respects documents; one document a row is how it is told not to.
            segments = segment_ids if shape.documents else zeros_like(segment_ids)
            return op(q, k, v, cos, sin, sinks, segments)

        return attend

    return attention


def build_cached_attention(shape: OpShape, pack: Pack) -> Callable[[int], CachedAttentionOp]:
    """Cached attention by window."""
    cos, sin = (Tensor(table) for table in rope_tables(shape.model, shape.seq_length))

    def attention(window: int) -> CachedAttentionOp:
        op = CachedAttention(shape.model.head_dim**-0.5, window, shape.precision, shape.precision, pack)

        def attend(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            sinks: Tensor | None,
            start: Tensor,
            keys: Parameter,
            values: Parameter,
        ) -> Tensor:
            return op(q, k, v, cos, sin, sinks, start, keys, values)

        return attend

    return attention


def build_cache_dtype(shape: OpShape, pack: Pack) -> Type:
    """Keys and values are kept as they enter the products."""
    return STORAGE[shape.precision]
