"""How uneven routing is: rows of the busiest expert rank over the mean, at a chosen percentile or at worst.

Each expert's load is taken as independent and normal with a coefficient of variation of 0.02 * experts^0.6 [D], a
compromise between the published losses against forced balance: 4% for 8 experts (Mixtral; this gives 7%) and 8 to 20%
for 128 (Qwen3-235B). A rank's load is the mean of its experts', and a step waits for the busiest rank.
"""

from functools import cache
from math import inf, sqrt
from statistics import NormalDist
from typing import Literal

from mindmoe.moe.config import MoeConfig

Percentile = Literal["balanced", "p50", "p99", "worst"]
PERCENTILES: tuple[Percentile, ...] = ("balanced", "p50", "p99", "worst")

_VARIATION = 0.02
_POWER = 0.6


@cache
def imbalance(experts: int, top_k: int, ep: int, percentile: Percentile) -> float:
    """Rows of the busiest rank over the mean, at least 1.

    Args:
        experts: routed experts of a layer; 0 for a dense model.
        top_k: experts of a token.
        ep: ranks that share the experts.
        percentile: `balanced` is forced balance, `worst` every token on one rank.
    """
    if not experts or ep == 1 or percentile == "balanced":
        return 1.0
    local = experts // ep
    worst = ep * min(top_k, local) / top_k
    if percentile == "worst":
        return worst
    quantile = 0.5 if percentile == "p50" else 0.99
    deviations = NormalDist().inv_cdf(quantile ** (1.0 / ep))
    return min(worst, 1.0 + max(0.0, deviations) * _VARIATION * experts**_POWER / sqrt(local))


def imbalance_bound(moe: MoeConfig | None) -> float:
    """The most that a run's capacity factor allows."""
    bounded = moe is not None and moe.dispatch.kind == "capacity"
    return max(1.0, moe.dispatch.capacity_factor) if moe is not None and bounded else inf
