"""Attention from plain products, with scores of every pair of tokens in memory.

A sink is one learned logit per query head that joins the softmax and is then dropped, so a head may attend to
nothing (gpt-oss).
"""

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

from mindmoe.ops.contract import AttentionOp, CachedAttentionOp, OpShape, Precision
from mindmoe.ops.precision import ROUND
from mindmoe.ops.rope import rope_tables

_HIDDEN = -1e9  # far below any logit, and finite so that its exponential is exactly 0 without NaN risk


def _band(seq_length: int, window: int) -> np.ndarray:
    """Additive mask (S, S): 0 where visible. window 0 is full causal attention."""
    i, j = np.arange(seq_length)[:, None], np.arange(seq_length)[None, :]
    visible = (j <= i) & ((j > i - window) if window else True)
    return np.where(visible, 0.0, _HIDDEN).astype(np.float32)


def build_attention(shape: OpShape) -> Callable[[int], AttentionOp]:
    """Attention by window; sequences may be shorter than those of `shape`."""
    model = shape.model
    cos, sin = rope_tables(model, shape.seq_length)
    return lambda window: _attention(cos, sin, model.head_dim, window, shape.documents, shape.precision)


def _attention(
    cos: np.ndarray, sin: np.ndarray, head_dim: int, window: int, documents: bool, precision: Precision
) -> AttentionOp:
    longest, half = cos.shape
    cos_t, sin_t = Tensor(cos[None, None]), Tensor(sin[None, None])
    # Built once for the longest sequence; shorter ones use its upper left corner.
    band = Tensor(_band(longest, window)[None, None])
    score, mix = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul()
    cast, scale = ROUND[precision], head_dim**-0.5

    def heads(x: Tensor) -> Tensor:  # (B, S, N*hd) -> (B, N, S, hd)
        return x.reshape((x.shape[0], x.shape[1], -1, head_dim)).transpose((0, 2, 1, 3))

    def rotate(x: Tensor) -> Tensor:
        # Pairs are (i, i + hd/2), the two halves of a head, not neighbours: Hugging Face's rotate-half.
        a, b = x[..., :half], x[..., half:]
        c, s = cos_t[:, :, : x.shape[2]], sin_t[:, :, : x.shape[2]]
        return ops.concat((a * c - b * s, b * c + a * s), -1)

    def attention(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, segment_ids: Tensor) -> Tensor:
        batch, seq_length = q.shape[0], q.shape[1]
        num_q, num_kv = q.shape[2] // head_dim, k.shape[2] // head_dim
        # Consecutive query heads share a key head: they are laid one behind the other as rows of one product,
        # (B, KV, H/KV * S, hd), instead of copying the keys.
        grouped = (batch, num_kv, num_q // num_kv * seq_length, head_dim)
        # On q: hd numbers a token and head, where the scores have S.
        q, k, v = rotate(heads(q)) * scale, rotate(heads(k)), heads(v)
        logits = score(cast(q.reshape(grouped)), cast(k)).reshape((batch, num_q, seq_length, seq_length))
        logits = logits + band[:, :, :seq_length, :seq_length]
        # (B, 1, S, S): True between tokens of different documents.
        if documents:
            other = segment_ids.expand_dims(1).expand_dims(3) != segment_ids.expand_dims(1).expand_dims(2)
            logits = ops.masked_fill(logits, other, _HIDDEN)
        if sinks is not None:
            # A sink is one more column of the softmax; its weight is cut off, so rows sum to less than 1.
            column = ops.broadcast_to(sinks.reshape((1, num_q, 1, 1)), (batch, num_q, seq_length, 1))
            weights = ops.softmax(ops.concat((logits, column), -1), -1)[..., :seq_length]
        else:
            weights = ops.softmax(logits, -1)
        weights = weights.reshape((batch, num_kv, num_q // num_kv * seq_length, seq_length))
        # (B, KV, H/KV * S, S) times values (B, KV, S, hd), back to (B, S, H*hd).
        out = mix(cast(weights), cast(v)).reshape((batch, num_q, seq_length, head_dim))
        return out.transpose((0, 2, 1, 3)).reshape((batch, seq_length, num_q * head_dim))

    return attention


def build_cached_attention(shape: OpShape) -> Callable[[int], CachedAttentionOp]:
    """Cached attention by window."""
    cos, sin = rope_tables(shape.model, shape.seq_length)
    return lambda window: _cached_attention(cos, sin, shape.model.head_dim, window, shape.precision)


def build_cache_dtype(shape: OpShape) -> ms.Type:
    """The cache is fp32; operands are rounded when they are used."""
    return ms.float32


def _cached_attention(
    cos: np.ndarray, sin: np.ndarray, head_dim: int, window: int, precision: Precision
) -> CachedAttentionOp:
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
        # For each of the C places of the cache, which new token belongs there; those outside keep what they hold.
        offset = ops.arange(0, cache.shape[2], dtype=ms.int32) - start
        inside = ops.logical_and(offset >= 0, offset < new.shape[2]).reshape((1, 1, -1, 1))
        # Clamped, so that the gather stays inside where `inside` is False.
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
        # Keys are kept rotated, as a position never changes.
        k_all = remember(keys, rotate(heads(k), at), start)
        v_all = remember(values, heads(v), start)
        grouped = (batch, num_kv, num_q // num_kv * num, head_dim)
        q = (rotate(heads(q), at) * scale).reshape(grouped)
        logits = score(cast(q), cast(k_all)).reshape((batch, num_q, num, capacity))
        # (1, 1, N, C): how far a place of the cache lies behind a query. Places that hold nothing yet lie ahead of
        # every query, so they need no mask of their own.
        age = at.reshape((1, 1, -1, 1)) - ops.arange(0, capacity, dtype=ms.int32).reshape((1, 1, 1, -1))
        hidden = ops.logical_or(age < 0, age >= window) if window else age < 0
        logits = ops.masked_fill(logits, hidden, _HIDDEN)
        # Always a column: one at _HIDDEN adds exactly 0 to the denominator.
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
