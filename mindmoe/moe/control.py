"""What holds the mean number of experts of dynamic routing, and the tables of past gradient norms (dry, NumPy only).

A layer's state is one small vector: a switch that is off during the static warm-up, the threshold of the slots, the
threshold of the groups, two settings that online tuning moves, and for thresholds per expert one figure each. Routers
read it, the training step moves it.
"""

from dataclasses import dataclass

import numpy as np

from mindmoe.moe.config import DmrConfig, MoeConfig

DYNAMIC, THRESHOLD, GROUP_THRESHOLD, ALPHA_SHIFT, LOGIT_SHIFT, NUM_CONTROLS = 0, 1, 2, 3, 4, 5
"""Places in the control vector; thresholds per expert follow. What online tuning moves are shifts, 0 without it: of the
weight of difficulty, and of the factor of the logits from 1."""

LEVEL, SEEN = 0, 1
"""Columns of a table: the mean log gradient norm seen so far, and whether there is one."""


def table_sizes(moe: MoeConfig | None, vocab_size: int) -> dict[str, int]:
    """Rows of every table by the name of its parameter: by token id, then by hashed pairs of tokens."""
    if moe is None or not isinstance(moe.router, DmrConfig):
        return {}
    features = moe.router.features
    sizes = {"model.token_table": vocab_size} if features.grad_ema else {}
    return sizes | ({"model.bigram_table": features.buckets} if features.bigram else {})


@dataclass(frozen=True, slots=True)
class Bins:
    """Equal bins from `low` to `high`."""

    low: float
    high: float
    count: int

    @property
    def width(self) -> float:
        """Of one bin."""
        return (self.high - self.low) / self.count


MARGIN_BINS = Bins(-12.0, 12.0, 1024)
DIFFICULTY_BINS = Bins(-6.0, 6.0, 256)


def score_bins(router: DmrConfig) -> Bins:
    """Bins of the scores that thresholds per expert are found in; a selection bias moves probabilities little."""
    return MARGIN_BINS if router.score == "softmax_after_topk" else Bins(-0.5, 1.5, 1024)


def num_controls(moe: MoeConfig) -> int:
    """Length of a layer's control vector; 0 for routers without."""
    if not isinstance(moe.router, DmrConfig):
        return 0
    return NUM_CONTROLS + (moe.num_experts if moe.router.variant == "expert_threshold" else 0)


def threshold_of(histogram: np.ndarray, bins: Bins, above: float) -> float:
    """The value that `above` of the counted values exceed, between bin edges by linear interpolation.

    Args:
        histogram: (bins.count) counts.
        bins: of the histogram.
        above: how many values shall be larger, from 0 to all of them.
    """
    larger = np.concatenate([np.cumsum(histogram[::-1])[::-1], [0.0]])  # at each edge, how many lie above it
    edges = np.linspace(bins.low, bins.high, bins.count + 1)
    falling = np.flatnonzero(larger[:-1] > larger[1:])
    if not len(falling):
        return bins.low
    above = float(np.clip(above, 0.0, larger[0]))
    at = int(next(i for i in falling if larger[i + 1] <= above))
    inside = (larger[at] - above) / (larger[at] - larger[at + 1])
    return float(edges[at] + inside * bins.width)


@dataclass(frozen=True, kw_only=True, slots=True)
class Signals:
    """Sums over a global batch for one layer; see mindmoe/moe/router/dmr.py. `scores` is (E, bins) or empty."""

    margins: np.ndarray
    difficulty: np.ndarray
    kept: float
    scores: np.ndarray


def updated_control(control: np.ndarray, signals: Signals, moe: MoeConfig, num_tokens: float, done: int) -> np.ndarray:
    """The control vector after a step.

    Args:
        control: (C) before.
        signals: of that step.
        moe: targets and rates.
        num_tokens: of the global batch.
        done: steps completed, this one included.
    """
    router = moe.router
    assert isinstance(router, DmrConfig)
    budget, groups, new = router.budget, router.groups, control.astype(np.float64)
    target = moe.num_experts_per_tok
    rate = 1.0 if done == 1 else budget.rho
    wanted = threshold_of(signals.margins, MARGIN_BINS, num_tokens * (target - budget.k_min))
    new[THRESHOLD] += rate * (wanted - new[THRESHOLD])
    if new[DYNAMIC]:
        new[THRESHOLD] += budget.mu * (signals.kept / num_tokens - target)
    if groups.easy < groups.hard:
        hard_share = (groups.target - groups.easy) / (groups.hard - groups.easy)
        edge = threshold_of(signals.difficulty, DIFFICULTY_BINS, num_tokens * hard_share)
        new[GROUP_THRESHOLD] += rate * (edge - new[GROUP_THRESHOLD])
    if router.variant == "expert_threshold":
        bins, above = score_bins(router), num_tokens * target / moe.num_experts
        reached = [threshold_of(histogram, bins, above) for histogram in signals.scores.reshape(moe.num_experts, -1)]
        new[NUM_CONTROLS:] += rate * (np.array(reached) - new[NUM_CONTROLS:])
    new[DYNAMIC] = float(done >= budget.warmup_steps)
    return new.astype(np.float32)


def updated_table(table: np.ndarray, counts: np.ndarray, sums: np.ndarray, decay: float) -> np.ndarray:
    """A table of mean log gradient norms after a step.

    Args:
        table: (V, 2) before; columns LEVEL and SEEN.
        counts: (V) occurrences in the global batch.
        sums: (V) sum of log gradient norms over them.
        decay: weight that a level keeps per new occurrence; the first step of a row sets it.
    """
    now = counts > 0
    mean = sums / np.maximum(counts, 1.0)
    weight = np.where(table[:, SEEN] > 0, 1.0 - decay**counts, 1.0)
    level = np.where(now, table[:, LEVEL] + weight * (mean - table[:, LEVEL]), table[:, LEVEL])
    return np.stack([level, np.maximum(table[:, SEEN], now)], axis=1).astype(np.float32)
