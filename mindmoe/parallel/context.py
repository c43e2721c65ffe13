"""Context parallelism: attention over a sequence that is spread over the ranks of a group.

Two siblings around the same arithmetic. Ulysses (arXiv 2309.14509) trades heads for sequence by an all-to-all and runs
the ordinary attention op on the whole sequence. Ring attention (arXiv 2310.01889) keeps the queries and passes keys and
values round, merging the blocks by their denominators; a rank needs the memory of its part only. The tokens of a
rank are those of parallel.sequence, so that causal work is even.
"""

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindmoe.ops.contract import OpSet
from mindmoe.ops.precision import ROUND
from mindmoe.ops.rope import rope_tables
from mindmoe.ops.zeros import zeros_like
from mindmoe.parallel.collectives import AllToAll, build_all_gather, primitives, shift
from mindmoe.parallel.groups import Group
from mindmoe.parallel.sequence import context_order, context_positions

_HIDDEN = -1e9  # far below any logit, and finite so that its exponential is exactly 0 without NaN risk


def build_context_attention(kernels: OpSet, window: int, group: Group, method: str) -> Callable[..., Tensor]:
    """Returns attention(q (B, S/cp, H*hd), k and v (B, S/cp, KV*hd), sinks (H) or None, segment_ids (B, S/cp)).

    It gives (B, S/cp, H*hd), as the op of ops.attention does for the whole sequence.

    Args:
        kernels: holds the attention op and the sizes it is bound to.
        window: visible tokens of a query, itself included; 0 for all.
        group: the context ranks.
        method: `ring` or `ulysses`.
    """
    if group.size == 1:
        return kernels.attention(window)
    return UlyssesAttention(kernels, window, group) if method == "ulysses" else RingAttention(kernels, window, group)


class UlyssesAttention(nn.Cell):
    """Each rank gets the whole sequence for some of the heads."""

    def __init__(self, kernels: OpSet, window: int, group: Group):
        super().__init__(auto_prefix=False)
        self.attend, self.head_dim = kernels.attention(window), kernels.shape.model.head_dim
        self.documents = kernels.shape.documents
        self.ranks, self.index = group.size, group.index
        self.exchange = AllToAll(group)
        self.gather = build_all_gather(group, 1)
        # After the exchange the tokens stand by rank, each with its early and its late chunk: `order` brings them into
        # the order of the sequence, which causal attention needs, and `back` undoes it.
        order = context_order(kernels.shape.seq_length, group.size)
        self.order = Tensor(order.astype(np.int32))
        self.back = Tensor(np.argsort(order).astype(np.int32))

    def construct(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, segment_ids: Tensor) -> Tensor:
        """See build_context_attention."""
        # q, k and v of a rank's heads go side by side in one exchange.
        parts = (self.by_rank(q), self.by_rank(k), self.by_rank(v))
        widths = (parts[0].shape[-1], parts[1].shape[-1])
        moved = self.exchange(ops.concat(parts, -1))  # (P, B, S/cp, widths)
        ranks, batch, length, width = moved.shape
        # (P, B, S/cp, widths) -> (B, S, widths), tokens in the order of the sequence
        full = ops.gather(moved.transpose((1, 0, 2, 3)).reshape((batch, ranks * length, width)), self.order, 1)
        segments = ops.zeros((batch, ranks * length), ms.int32)
        if self.documents:
            # a document reaches over the ranks' parts, so the op needs the numbers of the whole sequence
            segments = ops.gather(self.gather(ops.stop_gradient(segment_ids)), self.order, 1)
        heads = widths[0] // self.head_dim
        # every rank holds the sinks of all heads of its tensor rank and uses those of the heads that it got
        own = None if sinks is None else sinks[self.index * heads : (self.index + 1) * heads]
        out = self.attend(
            full[..., : widths[0]],
            full[..., widths[0] : widths[0] + widths[1]],
            full[..., widths[0] + widths[1] :],
            own,
            segments,
        )
        # Back to (B, P, S/cp, own heads): part p of the sequence returns to rank p.
        rows = ops.gather(out.astype(ms.float32), self.back, 1).reshape((batch, ranks, length, widths[0]))
        # (P, B, S/cp, heads of rank p) -> (B, S/cp, P, heads): the heads of all ranks side by side, in order
        return self.exchange(rows.transpose((1, 0, 2, 3))).transpose((1, 2, 0, 3)).reshape(q.shape)

    def by_rank(self, x: Tensor) -> Tensor:
        """x (B, S/cp, N*hd) -> (P, B, S/cp, N/P*hd) the heads of each rank; fewer heads than ranks are repeated."""
        batch, length, width = x.shape
        x = x.astype(ms.float32)
        heads = width // self.head_dim
        if heads < self.ranks:
            # Ranks that share a key head get a copy each; the backward of the broadcast adds up their gradients.
            copies = self.ranks // heads
            x = x.reshape((batch, length, heads, 1, self.head_dim))
            x = ops.broadcast_to(x, (batch, length, heads, copies, self.head_dim))
        return x.reshape((batch, length, self.ranks, -1)).transpose((2, 0, 1, 3))


class RingAttention(nn.Cell):
    """Rotary positions of this rank's tokens, then the ring."""

    def __init__(self, kernels: OpSet, window: int, group: Group):
        super().__init__(auto_prefix=False)
        shape = kernels.shape
        self.head_dim, self.half = shape.model.head_dim, shape.model.head_dim // 2
        # rotary angles follow the position in the whole sequence, not the place on this rank
        own = context_positions(shape.seq_length, group.size, group.index)
        cos, sin = rope_tables(shape.model, shape.seq_length)
        self.cos, self.sin = Tensor(cos[own][None, None]), Tensor(sin[own][None, None])
        self.scale = self.head_dim**-0.5
        self.plain = _Ring(group, shape.seq_length, window, shape.documents, shape.precision, False)
        self.with_sinks = _Ring(group, shape.seq_length, window, shape.documents, shape.precision, True)

    def construct(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, segment_ids: Tensor) -> Tensor:
        """See build_context_attention."""
        # q carries 1 / sqrt(hd) from here on, so neither logits nor the gradient of k need the factor
        q, k, v = self.rotate(self.heads(q)) * self.scale, self.rotate(self.heads(k)), self.heads(v)
        if sinks is None:
            out = self.plain(q, k, v, ops.zeros((q.shape[1],), ms.float32), segment_ids)[0]
        else:
            out = self.with_sinks(q, k, v, sinks, segment_ids)[0]
        return out.transpose((0, 2, 1, 3)).reshape((q.shape[0], q.shape[2], -1))

    def heads(self, x: Tensor) -> Tensor:
        """(B, S, N*hd) -> (B, N, S, hd)."""
        return x.astype(ms.float32).reshape((x.shape[0], x.shape[1], -1, self.head_dim)).transpose((0, 2, 1, 3))

    def rotate(self, x: Tensor) -> Tensor:
        """x (B, N, S, hd) with rotary positions."""
        # coordinate i of one half of a head turns together with coordinate i of the other
        a, b = x[..., : self.half], x[..., self.half :]
        return ops.concat((a * self.cos - b * self.sin, b * self.cos + a * self.sin), -1)


class _Ring(nn.Cell):
    """softmax(q k^T) v over all ranks' keys, with the sink in the denominator; keys travel with their gradients."""

    def __init__(self, group: Group, seq_length: int, window: int, documents: bool, precision: str, has_sinks: bool):
        super().__init__(auto_prefix=False)
        self.group, self.on, self.ranks = group, primitives(group), group.size
        self.documents, self.has_sinks, self.cast = documents, has_sinks, ROUND[precision]
        self.score, self.mix = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul()
        self.left_t, self.largest = ops.BatchMatMul(transpose_a=True), ops.ReduceMax()
        own = context_positions(seq_length, group.size, group.index)[:, None]
        # What position and window hide is known beforehand: (P, S/cp, S/cp) to be added to the logits, one band for
        # each turn.
        bands = []
        for turn in range(group.size):  # at each turn the keys of the rank `turn` places before
            keys = context_positions(seq_length, group.size, (group.index - turn) % group.size)[None]
            visible = (keys <= own) & ((keys > own - window) if window else True)
            bands.append(np.where(visible, 0.0, _HIDDEN).astype(np.float32))
        self.bands = Tensor(np.stack(bands))

    def construct(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, segment_ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, H, S, hd) scaled, k and v (B, KV, S, hd), sinks (H) -> (B, H, S, hd), and of the softmax the largest
        logit and the denominator relative to it (B, H, S): no logarithm is taken, which would cost digits.
        """
        # Softmax block by block: `out` and `total` are relative to `peak`, the largest logit so far, and are rescaled
        # when it rises. Turn 0 has the own keys, where every query sees itself, so from then on `peak` is a real logit
        # and the exponential of what is hidden is 0.
        travelling = self.packed(k, v, segment_ids)
        out, total = zeros_like(q), ops.zeros(q.shape[:3], ms.float32)
        peak = ops.full(q.shape[:3], 2 * _HIDDEN, dtype=ms.float32)
        for turn in range(self.ranks):
            key, value, segments = self.unpacked(travelling, k.shape)
            logits = self.logits(q, key, segment_ids, segments, turn)
            higher = ops.maximum(peak, self.largest(logits, -1))
            weights, shrink = ops.exp(logits - higher.expand_dims(-1)), ops.exp(peak - higher)
            total = total * shrink + weights.sum(-1)
            # grouped: query heads that share a key head form one matrix, and keys need no copies
            mixed = self.mix(self.cast(self.grouped(weights, k.shape[1])), self.cast(value)).reshape(q.shape)
            out, peak = out * shrink.expand_dims(-1) + mixed, higher
            # after the last block the keys have no reader
            if turn + 1 < self.ranks:
                travelling = shift(self.group, self.on, travelling)
        if self.has_sinks:
            # one more logit in the denominator, with a value of zero: once for each query, so after the ring
            sink = ops.broadcast_to(sinks.reshape((1, -1, 1)), peak.shape)
            higher = ops.maximum(peak, sink)
            shrink = ops.exp(peak - higher)
            out, total, peak = out * shrink.expand_dims(-1), total * shrink + ops.exp(sink - higher), higher
        return out / total.expand_dims(-1), peak, total

    def bprop(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor,
        segment_ids: Tensor,
        out: tuple[Tensor, Tensor, Tensor],
        dout: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, ...]:
        """Gradients of q, k, v and sinks; the blocks are computed again."""
        y, peak, total = out
        dy = dout[0]
        # The gradient of a logit is p * (dp - delta), where delta, the sum of p * dp over all keys, equals dy . y:
        # it needs no exchange (arXiv 2205.14135, appendix B.2).
        delta = (dy * y).sum(-1)
        dq = zeros_like(q)
        # Keys go round together with their gradients, to which every rank adds its queries' share.
        travelling = ops.concat((self.packed(k, v, segment_ids), zeros_like(k), zeros_like(v)), -1)
        # columns of keys, values and documents; behind them are the gradients
        kept = 2 * k.shape[-1] + 1
        gathered_dy = self.grouped(dy, k.shape[1])
        for turn in range(self.ranks):
            key, value, segments = self.unpacked(travelling, k.shape)
            # the final peak and denominator are known, so each block gives its share of the softmax at once
            p = ops.exp(self.logits(q, key, segment_ids, segments, turn) - peak.expand_dims(-1)) / total.expand_dims(-1)
            dp = self.score(self.cast(gathered_dy), self.cast(value)).reshape(p.shape)
            ds = self.grouped(p * (dp - delta.expand_dims(-1)), k.shape[1])
            dq = dq + self.mix(self.cast(ds), self.cast(key)).reshape(q.shape)
            dk = self.left_t(self.cast(ds), self.cast(self.grouped(q, k.shape[1])))
            dv = self.left_t(self.cast(self.grouped(p, k.shape[1])), self.cast(gathered_dy))
            grads = travelling[..., kept:] + ops.concat((dk, dv), -1)
            # after the last turn too: that shift brings the gradients home to the rank of the keys
            travelling = shift(self.group, self.on, ops.concat((travelling[..., :kept], grads), -1))
        dk, dv = travelling[..., kept : kept + k.shape[-1]], travelling[..., kept + k.shape[-1] :]
        # the value of a sink is zero, so its dp is zero and its gradient -p * delta, summed over batch and queries
        sink = ops.exp(sinks.reshape((1, -1, 1)) - peak) / total
        dsinks = -(sink * delta).sum((0, 2)) if self.has_sinks else zeros_like(sinks)
        return dq, dk, dv, dsinks, zeros_like(segment_ids)

    def packed(self, k: Tensor, v: Tensor, segment_ids: Tensor) -> Tensor:
        """What travels: keys, values and the document of each (B, KV, S, 2*hd + 1)."""
        # one column more on each key, in fp32 as the rest, so that a single message carries all
        segments = segment_ids.astype(ms.float32).reshape((k.shape[0], 1, k.shape[2], 1))
        return ops.concat((k, v, ops.broadcast_to(segments, (*k.shape[:3], 1))), -1)

    def unpacked(self, travelling: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values (B, KV, S, hd) and documents (B, S) fp32."""
        dim = shape[-1]
        return travelling[..., :dim], travelling[..., dim : 2 * dim], travelling[:, 0, :, 2 * dim]

    def grouped(self, x: Tensor, kv_heads: int) -> Tensor:
        """(B, H, S, ..) -> (B, KV, H/KV*S, ..): the query heads of a key head one after the other."""
        return x.reshape((x.shape[0], kv_heads, -1, x.shape[-1]))

    def logits(self, q: Tensor, key: Tensor, segment_ids: Tensor, segments: Tensor, turn: int) -> Tensor:
        """(B, H, S, S) with what a query does not see far below the rest."""
        logits = self.score(self.cast(self.grouped(q, key.shape[1])), self.cast(key))
        logits = logits.reshape((*q.shape[:3], key.shape[2])) + self.bands[turn]
        if self.documents:
            # (B, 1, S, 1) against (B, 1, 1, S): queries and keys of different documents
            other = segment_ids.astype(ms.float32).expand_dims(1).expand_dims(3) != segments.expand_dims(1).expand_dims(
                2
            )
            logits = ops.masked_fill(logits, other, _HIDDEN)
        return logits
