"""Tensor and sequence parallelism: the ends of a sharded computation (arXiv 1909.08053, 2205.05198).

Between blocks a rank holds the hidden states of its part of the sequence, (B, S / tp, D). A sharded computation begins
with an all-gather along the sequence and ends with a reduce-scatter; in a group of one both are the identity and the
fused ops are used as they are.
"""

from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindmoe.ops.zeros import zeros_like
from mindmoe.parallel.collectives import AllGather, Verb, build_all_gather, build_reduce_scatter
from mindmoe.parallel.groups import Group

_SEQUENCE = 1  # the dimension of (B, S, D) that is cut


def build_gather_sequence(group: Group) -> Verb:
    """Returns gather_sequence(x (B, S/tp, D)) -> (B, S, D), in fp32 where the group has several ranks."""
    if group.size == 1:
        return build_all_gather(group, _SEQUENCE)
    gather = build_all_gather(group, _SEQUENCE)

    def gather_sequence(x: Tensor) -> Tensor:
        return gather(x.astype(ms.float32))

    return gather_sequence


def build_row_linear(linear: Callable[..., Tensor], group: Group) -> Callable[..., Tensor]:
    """Returns row_linear(x (B, S, Din/tp), w (Dout, Din/tp), b (Dout) or None, residual (B, S/tp, Dout)).

    It sums the ranks' parts of x w^T, keeps own part of the sequence, (B, S/tp, Dout), and adds bias and residual.
    """
    if group.size == 1:
        return linear
    scatter = build_reduce_scatter(group, _SEQUENCE)

    def row_linear(x: Tensor, w: Tensor, b: Tensor | None, residual: Tensor) -> Tensor:
        # Bias and residual come after the sum over the ranks, which would add them tp times.
        y = scatter(linear(x, w, None, None))
        if b is not None:
            y = y + b
        return y + residual

    return row_linear


def build_vocab_embedding(embedding: Callable[..., Tensor], group: Group) -> Callable[..., Tensor]:
    """Returns embed(ids (B, S) int32, w (V/tp, D)) -> (B, S/tp, D): each rank looks up the tokens of its rows."""
    if group.size == 1:
        return embedding
    scatter, index = build_reduce_scatter(group, _SEQUENCE), group.index

    def embed(ids: Tensor, w: Tensor) -> Tensor:
        local = ids - index * w.shape[0]
        # Ids of other ranks' rows look up row 0 and are multiplied by 0, forward and backward; the sum over the ranks
        # then has the one row that is right.
        held = ops.logical_and(local >= 0, local < w.shape[0])
        rows = embedding(local * held.astype(ms.int32), w)
        return scatter(rows * held.astype(ms.float32).expand_dims(-1))

    return embed


class VocabCrossEntropy(nn.Cell):
    """Cross-entropy over a vocabulary that is spread over the group; no rank ever holds the logits of all of it.

    The loss is one value on all ranks; each returns its rows' part of the gradient of x, to be summed.

    Args:
        group: the ranks.
        part: the op of one part (mindmoe.ops.reference.cross_entropy.CrossEntropyPart).
    """

    def __init__(self, group: Group, part: Any):
        super().__init__(auto_prefix=False)
        self.index, self.part, self.gathered = group.index, part, AllGather(group)

    def construct(self, x: Tensor, w: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x (T, D), w (V/tp, D), labels (T) int32, mask (T) -> scalar sum [nats] and log-denominators (T)."""
        # (P, 2, T): each rank's log-denominator, and the logit of the label on the one rank that holds it, else 0
        parts = self.gathered(ops.stack(self.part.forward(x, w, labels - self.index * w.shape[0])))
        log_sum = ops.logsumexp(parts[:, 0], 0)
        return ((log_sum - parts[:, 1].sum(0)) * mask).sum(), log_sum

    def bprop(
        self,
        x: Tensor,
        w: Tensor,
        labels: Tensor,
        mask: Tensor,
        out: tuple[Tensor, Tensor],
        dout: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of x and w."""
        # With the denominator of the whole vocabulary each rank has its own columns of softmax - one-hot: no exchange.
        dx, dw = self.part.backward(mask * dout[0], out[1], x, w, labels - self.index * w.shape[0])
        return dx, dw, zeros_like(labels), zeros_like(mask)


def build_vocab_cross_entropy(cross_entropy: Callable[..., Tensor], part: Any, group: Group) -> Callable[..., Tensor]:
    """Returns loss(x (B, S/tp, D), w (V/tp, D), labels (B, S), mask (B, S)) -> summed loss [nats].

    It is equal on all ranks of the group.
    """
    if group.size == 1:
        return cross_entropy
    gather, spread = build_gather_sequence(group), VocabCrossEntropy(group, part)

    def loss(x: Tensor, w: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        # the gather's backward is a reduce-scatter, which sums the ranks' parts of dx
        full = gather(x)
        return spread(full.reshape((-1, full.shape[-1])), w, labels.reshape(-1), mask.reshape(-1))[0]

    return loss


def build_own_part(group: Group) -> Verb:
    """Returns own_part(x (B, S, ..)) -> (B, S/tp, ..): the tokens whose hidden states this rank holds."""
    if group.size == 1:
        return lambda x: x

    def own_part(x: Tensor) -> Tensor:
        length = x.shape[_SEQUENCE] // group.size
        return x[:, group.index * length : (group.index + 1) * length]

    return own_part


def build_vocab_measure(
    part: Callable[[Tensor, Tensor], Tensor],
    whole: Callable[[Tensor], Tensor],
    linear_out: Callable[..., Tensor],
    group: Group,
) -> Callable[..., Tensor]:
    """Returns measure(x (B, S/tp, D), w (V/tp, D), labels (B, S)) -> a figure of each own token (T), no gradient.

    Args:
        part: logits (T, V/tp) and labels (T), counted from this part of the vocabulary on -> (F, T).
        whole: what all parts made, (P, F, T) -> (T).
        linear_out: projects onto the vocabulary.
        group: the tensor ranks.
    """
    gather, own = build_gather_sequence(group), build_own_part(group)
    gathered = AllGather(group) if group.size > 1 else None

    def measure(x: Tensor, w: Tensor, labels: Tensor) -> Tensor:
        full = gather(ops.stop_gradient(x))
        logits = linear_out(full, ops.stop_gradient(w)).astype(ms.float32)
        # negative, or beyond the part, for labels of other ranks
        local = (labels - group.index * w.shape[0]).reshape(-1)
        parts = ops.stop_gradient(part(logits.reshape((-1, logits.shape[-1])), local))
        # (F, T) -> (P, F, T)
        parts = parts.expand_dims(0) if gathered is None else gathered(parts)
        return ops.stop_gradient(own(whole(parts).reshape(labels.shape)).reshape(-1))

    return measure
