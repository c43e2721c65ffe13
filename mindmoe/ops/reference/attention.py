"""Causal attention with grouped queries, rotary positions, sinks, a sliding window and document boundaries.

A sink is one learned logit per query head that joins the softmax and is then dropped, so a head may attend to
nothing (gpt-oss). Key j is visible to query i iff i - window < j <= i and both lie in the same document.
"""

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

from mindmoe.ops.precision import ROUND

_HIDDEN = -1e9  # far below any logit, and finite so that its exponential is exactly 0 without NaN risk


def _band(seq_length: int, window: int) -> np.ndarray:
    """Additive mask (S, S): 0 where visible. window 0 is full causal attention."""
    i, j = np.arange(seq_length)[:, None], np.arange(seq_length)[None, :]
    visible = (j <= i) & ((j > i - window) if window else True)
    return np.where(visible, 0.0, _HIDDEN).astype(np.float32)


def build_attention(
    *, cos: np.ndarray, sin: np.ndarray, head_dim: int, window: int, documents: bool, precision: str
) -> Callable[..., Tensor]:
    """Returns attention(q, k, v, sinks, segment_ids) -> (B, S, H * head_dim).

    Its arguments: q (B, S, H*hd), k and v (B, S, KV*hd) before rotation, sinks (H) or None, segment_ids (B, S) int32.

    Args:
        cos: (L, head_dim / 2) rotation table; sequences may have up to L tokens.
        sin: the same for the sine.
        window: visible tokens of a query, itself included; 0 for all.
        documents: whether attention stays inside segments of equal id.
        precision: operand precision of the two products.
    """
    longest, half = cos.shape
    cos_t, sin_t = Tensor(cos[None, None]), Tensor(sin[None, None])
    band = Tensor(_band(longest, window)[None, None])
    score, mix = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul()
    cast, scale = ROUND[precision], head_dim**-0.5

    def heads(x: Tensor) -> Tensor:  # (B, S, N*hd) -> (B, N, S, hd)
        return x.reshape((x.shape[0], x.shape[1], -1, head_dim)).transpose((0, 2, 1, 3))

    def rotate(x: Tensor) -> Tensor:
        a, b = x[..., :half], x[..., half:]
        c, s = cos_t[:, :, : x.shape[2]], sin_t[:, :, : x.shape[2]]
        return ops.concat((a * c - b * s, b * c + a * s), -1)

    def attention(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, segment_ids: Tensor) -> Tensor:
        batch, seq_length = q.shape[0], q.shape[1]
        num_q, num_kv = q.shape[2] // head_dim, k.shape[2] // head_dim
        grouped = (batch, num_kv, num_q // num_kv * seq_length, head_dim)
        q, k, v = rotate(heads(q)) * scale, rotate(heads(k)), heads(v)
        logits = score(cast(q.reshape(grouped)), cast(k)).reshape((batch, num_q, seq_length, seq_length))
        logits = logits + band[:, :, :seq_length, :seq_length]
        if documents:
            other = segment_ids.expand_dims(1).expand_dims(3) != segment_ids.expand_dims(1).expand_dims(2)
            logits = ops.masked_fill(logits, other, _HIDDEN)
        if sinks is not None:
            column = ops.broadcast_to(sinks.reshape((1, num_q, 1, 1)), (batch, num_q, seq_length, 1))
            weights = ops.softmax(ops.concat((logits, column), -1), -1)[..., :seq_length]
        else:
            weights = ops.softmax(logits, -1)
        weights = weights.reshape((batch, num_kv, num_q // num_kv * seq_length, seq_length))
        out = mix(cast(weights), cast(v)).reshape((batch, num_q, seq_length, head_dim))
        return out.transpose((0, 2, 1, 3)).reshape((batch, seq_length, num_q * head_dim))

    return attention


def build_cached_attention(
    *, cos: np.ndarray, sin: np.ndarray, head_dim: int, window: int, precision: str
) -> Callable[..., Tensor]:
    """Returns attention(q, k, v, sinks, start, keys, values) -> (B, N, H * head_dim), for generation.

    Its arguments: q (B, N, H*hd), k and v (B, N, KV*hd) before rotation of the tokens at start .. start + N - 1, sinks
    (H) or None, start (1) int32; keys and values (B, KV, C, hd) fp32 parameters that hold rotated keys and values of
    the positions before start, and afterwards of these tokens too.
    """
    half = cos.shape[1]
    cos_t, sin_t = Tensor(cos), Tensor(sin)
    score, mix = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul()
    cast, scale = ROUND[precision], head_dim**-0.5

    def heads(x: Tensor) -> Tensor:  # (B, N, M*hd) -> (B, M, N, hd)
        return x.reshape((x.shape[0], x.shape[1], -1, head_dim)).transpose((0, 2, 1, 3))

    def rotate(x: Tensor, at: Tensor) -> Tensor:
        a, b = x[..., :half], x[..., half:]
        c, s = ops.gather(cos_t, at, 0), ops.gather(sin_t, at, 0)
        return ops.concat((a * c - b * s, b * c + a * s), -1)

    def remember(cache: Parameter, new: Tensor, start: Tensor) -> Tensor:
        """The cache with `new` (B, KV, N, hd) from position start on, stored and returned."""
        offset = ops.arange(0, cache.shape[2], dtype=ms.int32) - start
        inside = ops.logical_and(offset >= 0, offset < new.shape[2]).reshape((1, 1, -1, 1))
        spread = ops.gather(new, ops.clamp(offset, 0, new.shape[2] - 1), 2)
        extended = ops.select(ops.broadcast_to(inside, cache.shape), spread, cache)
        # not the result of assign: a compiled graph may read the parameter before it is written
        return ops.depend(extended, ops.assign(cache, extended))

    def attention(
        q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, start: Tensor, keys: Parameter, values: Parameter
    ) -> Tensor:
        batch, num, capacity = q.shape[0], q.shape[1], keys.shape[2]
        num_q, num_kv = q.shape[2] // head_dim, k.shape[2] // head_dim
        at = start + ops.arange(0, num, dtype=ms.int32)
        k_all = remember(keys, rotate(heads(k), at), start)
        v_all = remember(values, heads(v), start)
        grouped = (batch, num_kv, num_q // num_kv * num, head_dim)
        q = (rotate(heads(q), at) * scale).reshape(grouped)
        logits = score(cast(q), cast(k_all)).reshape((batch, num_q, num, capacity))
        age = at.reshape((1, 1, -1, 1)) - ops.arange(0, capacity, dtype=ms.int32).reshape((1, 1, 1, -1))
        hidden = ops.logical_or(age < 0, age >= window) if window else age < 0
        logits = ops.masked_fill(logits, hidden, _HIDDEN)
        column = (
            ops.full((batch, num_q, num, 1), _HIDDEN, dtype=ms.float32)
            if sinks is None
            else ops.broadcast_to(sinks.reshape((1, num_q, 1, 1)), (batch, num_q, num, 1))
        )
        weights = ops.softmax(ops.concat((logits, column), -1), -1)[..., :capacity]
        weights = weights.reshape((batch, num_kv, num_q // num_kv * num, capacity))
        out = mix(cast(weights), cast(v_all)).reshape((batch, num_q, num, head_dim))
        return out.transpose((0, 2, 1, 3)).reshape((batch, num, num_q * head_dim))

    return attention
