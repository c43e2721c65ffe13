"""What a run reports about its routing, from the counts that the layers return (dry, numpy only)."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class RoutingSums(NamedTuple):
    """Sums over a global batch: counts (L, E) of assignments before any is dropped, entropy (L) and dropped (L)."""

    counts: np.ndarray
    entropy: np.ndarray
    dropped: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingStatistics:
    """Per layer: load (L, E) fractions, cv, max_vio, entropy [nats], dropped fraction and mean_k, each (L)."""

    load: np.ndarray
    cv: np.ndarray
    max_vio: np.ndarray
    entropy: np.ndarray
    dropped: np.ndarray
    mean_k: np.ndarray


def routing_statistics(sums: RoutingSums, num_tokens: float) -> RoutingStatistics:
    """Statistics of a global batch.

    Args:
        sums: of the batch; the entropy is that of the normalised scores [nats].
        num_tokens: tokens of the batch.

    Returns:
        cv is the coefficient of variation of the load, max_vio = max load / mean load - 1, mean_k the experts of a
        token.
    """
    counts = sums.counts
    # Lower bounds, here and below, keep a layer without assignments from dividing by 0.
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    load = counts / total
    mean = load.mean(axis=1)
    return RoutingStatistics(
        load=load,
        cv=load.std(axis=1) / np.maximum(mean, 1e-30),
        max_vio=load.max(axis=1) / np.maximum(mean, 1e-30) - 1.0,
        entropy=sums.entropy / num_tokens,
        dropped=sums.dropped / total[:, 0],
        mean_k=counts.sum(axis=1) / num_tokens,
    )


class Saturation:
    """Notices a router that has collapsed: records in a row whose max_vio is nearly the largest that there can be.

    An expert takes a token once at most, so with E experts of which a token has k on average that is E / k - 1.
    """

    NEAR, RECORDS = 0.9, 3

    def __init__(self) -> None:
        self._in_a_row, self._told = 0, False

    def after(self, statistics: RoutingStatistics) -> str | None:
        """The warning, once, when the last records make it due."""
        experts = statistics.load.shape[1]
        # Reached when the same k experts take every token: the mean load is k / E of the tokens, the largest all.
        most = experts / np.maximum(statistics.mean_k, 1.0) - 1.0
        # most = 0 where every expert takes every token: nothing to collapse.
        full = (most > 0.0) & (statistics.max_vio >= self.NEAR * most)
        self._in_a_row = self._in_a_row + 1 if full.any() else 0
        if self._told or self._in_a_row < self.RECORDS:
            return None
        self._told = True
        # Of the layers that are full, the one nearest to its limit
        layer = int(np.argmax(np.where(full, statistics.max_vio / np.maximum(most, 1e-30), 0.0)))
        return (
            f"the router of layer {layer} has collapsed: max_vio {statistics.max_vio[layer]:.2f} of at most "
            f"{most[layer]:.2f} for {self.RECORDS} records in a row, nearly all tokens go to the same "
            f"{max(1, round(float(statistics.mean_k[layer])))} of {experts} experts: raise moe.balance.aux_coef or set "
            "moe.balance.bias_rate=1e-3, or lower optim.lr, and begin again from a checkpoint before that"
        )
