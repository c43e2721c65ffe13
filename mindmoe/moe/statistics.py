"""What a run reports about its routing, from the counts that the layers return (dry, numpy only)."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingStatistics:
    """Per layer: load (L, E) fractions, cv, max_vio, entropy [nats], dropped fraction and mean_k, each (L)."""

    load: np.ndarray
    cv: np.ndarray
    max_vio: np.ndarray
    entropy: np.ndarray
    dropped: np.ndarray
    mean_k: np.ndarray


def routing_statistics(
    counts: np.ndarray, entropy_sum: np.ndarray, dropped: np.ndarray, num_tokens: float
) -> RoutingStatistics:
    """Statistics of a global batch.

    Args:
        counts: (L, E) assignments per expert, before any is dropped.
        entropy_sum: (L) sum over tokens of the entropy of the normalised scores [nats].
        dropped: (L) assignments dropped.
        num_tokens: tokens of the batch.

    Returns:
        cv is the coefficient of variation of the load, max_vio = max load / mean load - 1, mean_k the experts of a
        token.
    """
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    load = counts / total
    mean = load.mean(axis=1)
    return RoutingStatistics(
        load=load,
        cv=load.std(axis=1) / np.maximum(mean, 1e-30),
        max_vio=load.max(axis=1) / np.maximum(mean, 1e-30) - 1.0,
        entropy=entropy_sum / num_tokens,
        dropped=dropped / total[:, 0],
        mean_k=counts.sum(axis=1) / num_tokens,
    )
