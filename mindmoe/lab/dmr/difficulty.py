"""How hard a token is: measured after the fact, predicted before routing from what is known then.

Two measures: the gradient of the cross-entropy at the logits, p - y, whose norm needs no backward pass; and the
gradient of the whole loss at the output of the embedding, which a tap in the backward pass reads. Tables by token id
and by hashed pairs of tokens hold the mean logarithm of one of them over earlier steps; the head of a layer is
regressed on this step's, or on a table, so no label of a step takes part in the routing of that step.
"""

from collections.abc import Callable

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindmoe.lab.dmr.config import FeaturesConfig
from mindmoe.lab.dmr.control import LEVEL, SEEN
from mindmoe.moe.router.base import Named
from mindmoe.ops.zeros import zeros_like

_NONE = -1e9  # a logit whose exponential is 0
_DIGIT, _PRIME = 1024, 2**19 - 1  # 4 * 1023 * _PRIME < 2^31: the hash of a pair needs no integers of 64 bits
_FACTORS = (382_187, 104_729, 275_207, 491_531)


def others_of(logits: Tensor, labels: Tensor) -> Tensor:
    """What ln ||p - y|| needs of some columns of the vocabulary: (3, T).

    Args:
        logits: (T, V) fp32.
        labels: (T) int32 column of the label; outside 0..V-1 where it is among others' columns.

    Returns:
        ln of the sum of exp(logit), and of exp(2 logit), over all columns but the label's; and the label's logit,
        below all others where its column is elsewhere.
    """
    columns = ops.arange(0, logits.shape[1], dtype=ms.int32).expand_dims(0)
    is_label = labels.astype(ms.int32).expand_dims(1) == columns
    rest = ops.select(is_label, ops.full_like(logits, _NONE), logits)
    of_label = ops.select(is_label, logits, ops.full_like(logits, _NONE))
    return ops.stack((ops.logsumexp(rest, 1), ops.logsumexp(2.0 * rest, 1), ops.logsumexp(of_label, 1)))


def log_norm_of(parts: Tensor) -> Tensor:
    """ln ||p - y|| (T) from `others_of` of all parts of the vocabulary, (P, 3, T).

    Its square is (1 - p_label)^2 + sum over others of p^2. Each part is taken as a logarithm of one plus something, so
    that neither the smallest norms of a sure model nor the smallest differences of a fresh one, all of whose norms are
    nearly 1, drown in rounding.
    """
    rest, square, of_label = ops.logsumexp(parts[:, 0], 0), ops.logsumexp(parts[:, 1], 0), ops.logsumexp(parts[:, 2], 0)
    odds = of_label - rest
    others = ops.relu(odds) + _log1p(ops.exp(-ops.abs(odds)))  # -ln(1 - p_label)
    return 0.5 * _log1p(ops.exp(square - 2.0 * rest)) - others


def _log1p(x: Tensor) -> Tensor:
    """ln(1 + x) of 0 <= x <= 1 to full precision by the series of atanh; the CPU's op adds 1 first."""
    y = x / (2.0 + x)
    z = y * y
    series = 1.0 + z * (1 / 3 + z * (1 / 5 + z * (1 / 7 + z * (1 / 9 + z * (1 / 11 + z / 13)))))
    return 2.0 * y * series


class GradientTap(nn.Cell):
    """x as it is; in the backward pass the norm of each token's gradient is summed by the rows of the tables.

    The sums leave as the gradient of `sink`, so they need neither hidden state nor a second backward pass.
    """

    def construct(self, x: Tensor, rows: Tensor, weight: Tensor, sink: Tensor) -> Tensor:
        """x (B, S, D) -> x.

        Args:
            x: output of the embedding.
            rows: see `build_table_rows`.
            weight: scalar, what the loss of a token is multiplied with; norms are divided by it.
            sink: (2, V) over the rows V of all tables; its gradient is occurrences, and sums of ln norm.
        """
        return x

    def bprop(
        self, x: Tensor, rows: Tensor, weight: Tensor, sink: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradient as it is, and the sums; a token without gradient does not occur."""
        each = dout.astype(ms.float32).reshape((-1, dout.shape[-1])) / weight
        square = (each * each).sum(-1)
        counted = (square > 0).astype(ms.float32)
        sums = table_sums(0.5 * ops.log(ops.maximum(square, 1e-30)), rows, counted, sink.shape[1])
        return dout, zeros_like(rows), zeros_like(weight), sums


def bigram_rows(ids: Tensor, before: Tensor, buckets: int) -> Tensor:
    """Buckets of pairs of tokens, int32 of the shape of `ids`; `before` is -1 where a sequence begins.

    The sum of both tokens' digits (base 1024) times fixed factors, modulo a prime, modulo `buckets`.
    """
    first = before + 1
    total = first % _DIGIT * _FACTORS[0] + first // _DIGIT * _FACTORS[1]
    total = total + ids % _DIGIT * _FACTORS[2] + ids // _DIGIT * _FACTORS[3]
    return total % _PRIME % buckets


def build_table_keys(features: FeaturesConfig) -> Callable[[Named], tuple[Tensor, ...]]:
    """Returns keys(read) -> for each table the row of each token, int32 of the shape of what is read."""

    def keys(read: Named) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = ()
        if features.grad_ema:
            found = (read["token_id"],)
        if features.bigram:
            found = (*found, bigram_rows(read["token_id"], read["previous"], features.buckets))
        return found

    return keys


def build_table_rows(features: FeaturesConfig) -> Callable[[Named, Named], Tensor]:
    """Returns rows(read, shared) -> (N * T) int32: rows of T tokens, as if the N tables lay behind each other."""
    keys = build_table_keys(features)

    def rows(read: Named, shared: Named) -> Tensor:
        found = keys(read)
        first = found[0].reshape(-1)
        if len(found) == 1:
            return first
        return ops.concat((first, found[1].reshape(-1) + shared["token_table"].shape[0]))

    return rows


def told_by(features: Tensor) -> tuple[Tensor, Tensor]:
    """Level (T) and known or not (T) out of the features (T, 2 N) of N tables: the pair of tokens before the token."""
    level, seen = features[:, 0], features[:, 1]
    for place in range(2, features.shape[1], 2):
        level = ops.select(features[:, place + 1] > 0, features[:, place], level)
        seen = ops.maximum(seen, features[:, place + 1])
    return level, seen


def token_features(table: Tensor, rows: Tensor) -> Tensor:
    """What a table says of tokens: (T, 2), the level standardised over known rows and 0 elsewhere, and known or not.

    Args:
        table: (V, 2), see mindmoe/lab/dmr/control.py.
        rows: of any shape with T elements.
    """
    level, seen = table[:, LEVEL], table[:, SEEN]
    known = ops.maximum(seen.sum(), 1.0)
    mean = (level * seen).sum() / known
    deviation = ops.sqrt((ops.square(level - mean) * seen).sum() / known) + 1e-6
    features = ops.stack(((level - mean) / deviation * seen, seen), 1)
    return ops.stop_gradient(ops.gather(features, rows.reshape(-1), 0))


def uniform_draw(ids: Tensor, places: Tensor) -> Tensor:
    """Numbers (T) in [0, 1) that mean nothing and are the same under every layout, of ids and places (B, S) int32."""
    size = 65536  # products stay below 2^31
    mixed = (ids % size) * 7919 % size + (places % size) * 24859 % size
    return (mixed % size).reshape(-1).astype(ms.float32) / size


def table_sums(log_norms: Tensor, rows: Tensor, mask: Tensor, size: int) -> Tensor:
    """Occurrences and sums of log norms by row, (2, V) with V = `size`, over unmasked tokens (T).

    `rows` are those of the tokens in one table, or in several as `build_table_rows` lays them.
    """
    at, counted = rows.reshape(-1, 1), mask.reshape(-1)
    times = at.shape[0] // counted.shape[0]
    if times > 1:
        log_norms, counted = ops.tile(log_norms.reshape(-1), (times,)), ops.tile(counted, (times,))
    zeros = ops.zeros((size,), ms.float32)
    return ops.stack(
        (
            ops.tensor_scatter_add(zeros, at, counted),
            ops.tensor_scatter_add(zeros, at, log_norms * counted),
        )
    )


def predict(weight: Tensor, bias: Tensor, x: Tensor, features: Tensor | None) -> Tensor:
    """The prediction of a head (T); the gradient ends at its weights.

    Args:
        weight: (D + 2 N), of the hidden state and the features of N tables, at least one.
        bias: (1).
        x: (T, D) fp32.
        features: (T, 2 N), or None where there is no table.
    """
    hidden = x.shape[1]
    # Adam moves every weight by about its rate: over D of them at once the prediction would jump from step to step.
    prediction = (ops.stop_gradient(x) * weight[:hidden]).sum(-1) * hidden**-0.5 + bias
    return prediction if features is None else prediction + (features * weight[hidden:]).sum(-1)


def moments(values: Tensor, mask: Tensor) -> Tensor:
    """Count, sum and sum of squares of the unmasked values (T): (3), which add up over parts of a batch."""
    counted = values * mask
    return ops.stack((mask.sum(), counted.sum(), (values * counted).sum()))


def standardised(values: Tensor, of: Tensor) -> Tensor:
    """Values in deviations from the mean of a batch with the given `moments`."""
    count = ops.maximum(of[0], 1.0)
    mean = of[1] / count
    return (values - mean) / (ops.sqrt(ops.maximum(of[2] / count - mean * mean, 0.0)) + 1e-6)


def build_regression(coefficient: float) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Returns loss(predictions (L, T), target (T), mask (T), count) -> coefficient * sum over layers and tokens of the
    Huber loss, over `count`, the unmasked tokens of all parts of the batch."""

    def loss(predictions: Tensor, target: Tensor, mask: Tensor, count: Tensor) -> Tensor:
        error = predictions - ops.stop_gradient(target)
        size = ops.abs(error)
        huber = ops.select(size < 1.0, 0.5 * error * error, size - 0.5)
        return coefficient * (huber * mask).sum() / ops.maximum(count, 1.0)

    return loss
