"""How hard a token is: measured at the output after the fact, predicted before routing from what is known then.

The gradient of the cross-entropy at the logits is p - y; its norm needs no backward pass. The table by token id holds
its mean logarithm over earlier steps; the head of a layer is regressed on this step's, so no label of a step takes part
in the routing of that step.
"""

from collections.abc import Callable

import mindspore as ms
from mindspore import Tensor, ops

from mindmoe.moe.control import LEVEL, SEEN


def log_gradient_norm(logits: Tensor, labels: Tensor) -> Tensor:
    """ln ||p - y|| (T) of logits (T, V) and labels (T), without gradient."""
    p = ops.softmax(ops.stop_gradient(logits).astype(ms.float32), -1)
    of_label = ops.gather_elements(p, 1, labels.reshape(-1, 1).astype(ms.int32)).reshape(-1)
    square = (p * p).sum(-1) - 2.0 * of_label + 1.0
    return 0.5 * ops.log(ops.maximum(square, 1e-12))


def token_features(table: Tensor, input_ids: Tensor) -> Tensor:
    """What the table says of tokens: (T, 2), the level standardised over known ids and 0 elsewhere, and known or not.

    Args:
        table: (V, 2), see mindmoe/moe/control.py.
        input_ids: of any shape with T elements.
    """
    level, seen = table[:, LEVEL], table[:, SEEN]
    known = ops.maximum(seen.sum(), 1.0)
    mean = (level * seen).sum() / known
    deviation = ops.sqrt((ops.square(level - mean) * seen).sum() / known) + 1e-6
    features = ops.stack(((level - mean) / deviation * seen, seen), 1)
    return ops.stop_gradient(ops.gather(features, input_ids.reshape(-1), 0))


def table_sums(log_norms: Tensor, input_ids: Tensor, mask: Tensor, vocab_size: int) -> Tensor:
    """Occurrences and sums of log norms by token id, (2, V), over unmasked tokens (T)."""
    at, counted = input_ids.reshape(-1, 1), mask.reshape(-1)
    zeros = ops.zeros((vocab_size,), ms.float32)
    return ops.stack(
        (
            ops.tensor_scatter_add(zeros, at, counted),
            ops.tensor_scatter_add(zeros, at, log_norms * counted),
        )
    )


def predict(weight: Tensor, bias: Tensor, x: Tensor, features: Tensor | None) -> Tensor:
    """The prediction of a head (T); the gradient ends at its weights.

    Args:
        weight: (D + 2), of the hidden state and the two token features.
        bias: (1).
        x: (T, D) fp32.
        features: (T, 2), or None where there is no table.
    """
    hidden = x.shape[1]
    # Adam moves every weight by about its rate: over D of them at once the prediction would jump from step to step.
    prediction = (ops.stop_gradient(x) * weight[:hidden]).sum(-1) * hidden**-0.5 + bias
    return prediction if features is None else prediction + (features * weight[hidden:]).sum(-1)


def build_regression(coefficient: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Returns loss(predictions (L, T), log_norms (T), mask (T)) -> coefficient * sum of mean Huber losses.

    The target is standardised over the unmasked tokens of the micro-batch.
    """

    def loss(predictions: Tensor, log_norms: Tensor, mask: Tensor) -> Tensor:
        counted = mask.reshape(-1)
        count = ops.maximum(counted.sum(), 1.0)
        mean = (log_norms * counted).sum() / count
        deviation = ops.sqrt((ops.square(log_norms - mean) * counted).sum() / count) + 1e-6
        error = predictions - ops.stop_gradient((log_norms - mean) / deviation)
        size = ops.abs(error)
        huber = ops.select(size < 1.0, 0.5 * error * error, size - 0.5)
        return coefficient * (huber * counted).sum() / count

    return loss
