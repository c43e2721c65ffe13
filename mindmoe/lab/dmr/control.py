"""What holds the mean number of experts of dynamic routing, and the tables of past gradient norms (dry, NumPy only).

A layer's state is one small vector: a switch that is off during the static warm-up, the threshold of the slots, the
threshold of the groups, two settings that online tuning moves, and for thresholds per expert one figure each. Routers
read it, the training step moves it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mindmoe.moe.router.base import RouterStep

if TYPE_CHECKING:
    from mindmoe.lab.dmr.config import Dmr
    from mindmoe.moe.config import MoeConfig

DYNAMIC, THRESHOLD, GROUP_THRESHOLD, ALPHA_SHIFT, LOGIT_SHIFT, NUM_CONTROLS = 0, 1, 2, 3, 4, 5
"""Places in the control vector; thresholds per expert follow. What online tuning moves are shifts, 0 without it: of the
weight of difficulty, and of the factor of the logits from 1."""

LEVEL, SEEN = 0, 1
"""Columns of a table: the mean log gradient norm seen so far, and whether there is one."""

NORMS = "norms"
"""The sums of all tables, (2, V): occurrences, and sums of log gradient norms."""


def table_sizes(router: "Dmr", vocab_size: int) -> dict[str, int]:
    """Rows of every table by name: by token id, then by hashed pairs of tokens."""
    sizes = {"token_table": vocab_size} if router.features.grad_ema else {}
    return sizes | ({"bigram_table": router.features.buckets} if router.features.bigram else {})


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


def score_bins(router: "Dmr") -> Bins:
    """Bins of the scores that thresholds per expert are found in; a selection bias moves probabilities little."""
    return MARGIN_BINS if router.score == "softmax_after_topk" else Bins(-0.5, 1.5, 1024)


def num_controls(router: "Dmr", moe: "MoeConfig") -> int:
    """Length of a layer's control vector."""
    return NUM_CONTROLS + (moe.num_experts if router.variant == "expert_threshold" else 0)


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


def updated_control(router: "Dmr", moe: "MoeConfig", control: np.ndarray, step: RouterStep) -> np.ndarray:
    """The control vector after a step.

    Args:
        router: rates.
        moe: targets.
        control: (C) before.
        step: of the layer, with the signals of mindmoe/lab/dmr/routing.py.
    """
    target, budget, groups, new = moe.num_experts_per_tok, router.budget, router.groups, control.astype(np.float64)
    signals, num_tokens = step.signals, float(step.signals["tokens"][0])
    rate = 1.0 if step.done == 1 else budget.rho
    wanted = threshold_of(signals["margins"], MARGIN_BINS, num_tokens * (target - budget.k_min))
    new[THRESHOLD] += rate * (wanted - new[THRESHOLD])
    if new[DYNAMIC]:
        new[THRESHOLD] += budget.mu * (float(step.counts.sum()) / num_tokens - target)
    if groups.easy < groups.hard:
        hard_share = (groups.target - groups.easy) / (groups.hard - groups.easy)
        edge = threshold_of(signals["difficulty"], DIFFICULTY_BINS, num_tokens * hard_share)
        new[GROUP_THRESHOLD] += rate * (edge - new[GROUP_THRESHOLD])
    if router.variant == "expert_threshold":
        bins, above = score_bins(router), num_tokens * target / moe.num_experts
        histograms = signals["scores"].reshape(moe.num_experts, -1)
        reached = [threshold_of(histogram, bins, above) for histogram in histograms]
        new[NUM_CONTROLS:] += rate * (np.array(reached) - new[NUM_CONTROLS:])
    new[DYNAMIC] = float(step.done >= budget.warmup_steps)
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
