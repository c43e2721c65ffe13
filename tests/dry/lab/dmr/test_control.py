"""Controllers against quantiles, and a simulated run whose mean k must stay at its target."""

import itertools

import numpy as np
import pytest

from mindmoe.lab.dmr.config import Dmr
from mindmoe.lab.dmr.control import (
    DIFFICULTY_BINS,
    DYNAMIC,
    GROUP_THRESHOLD,
    MARGIN_BINS,
    NUM_CONTROLS,
    THRESHOLD,
    Bins,
    num_controls,
    score_bins,
    threshold_of,
    updated_control,
    updated_table,
)
from mindmoe.moe.config import MoeConfig
from mindmoe.moe.router.base import RouterStep

T, E, K = 4096, 16, 4


def told(margins: np.ndarray, kept: float, done: int, **more: np.ndarray) -> RouterStep:
    """A step of T tokens."""
    signals = {"margins": margins, "difficulty": np.zeros(DIFFICULTY_BINS.count), "tokens": np.array([float(T)])}
    signals |= {"scores": np.zeros(1)} | more
    return RouterStep(counts=np.array([kept]), signals=signals, sums={}, done=done)


def moe(**router) -> MoeConfig:
    budget = {"k_min": 1, "k_max": 8, "warmup_steps": 5} | router.pop("budget", {})
    return MoeConfig(
        num_experts=E,
        num_experts_per_tok=K,
        router=Dmr.model_validate({"type": "dmr", "budget": budget} | router),
    )


def count(values: np.ndarray, bins: Bins) -> np.ndarray:
    return np.histogram(np.clip(values, bins.low, bins.high - 1e-9), bins.count, (bins.low, bins.high))[0]


@pytest.mark.parametrize("share", [0.01, 0.3, 0.77, 0.999])
def test_threshold_is_the_quantile(share):
    values = np.random.default_rng(0).normal(-1.0, 0.8, 20000)
    got = threshold_of(count(values, MARGIN_BINS), MARGIN_BINS, share * len(values))
    assert got == pytest.approx(np.quantile(values, 1 - share), abs=MARGIN_BINS.width)


def test_threshold_at_the_ends():
    histogram = count(np.array([0.0, 1.0]), MARGIN_BINS)
    assert threshold_of(histogram, MARGIN_BINS, 2) <= 0.0 < 1.0 < threshold_of(histogram, MARGIN_BINS, 0)
    assert threshold_of(np.zeros(MARGIN_BINS.count), MARGIN_BINS, 5) == MARGIN_BINS.low


def test_mean_k_is_held_while_scores_drift():
    """Scores widen over 300 steps as a router learns: after the warm-up the mean stays within 2%, a step within 15%."""
    config, rng = moe(), np.random.default_rng(1)
    control, means = np.zeros(num_controls(config.router, config), np.float32), []
    for step in range(300):
        slots = -np.cumsum(rng.exponential(0.2 + 0.002 * step, (T, 7)), 1) + rng.normal(0, 0.3, (T, 1))
        kept = 1 + (slots > control[THRESHOLD]).sum(1) if control[DYNAMIC] else np.full(T, K)
        means.append(kept.mean())
        signals = told(count(slots, MARGIN_BINS), float(kept.sum()), step + 1)
        control = updated_control(config.router, config, control, signals)
    after = np.array(means[5:]) / K - 1.0
    assert set(means[:5]) == {float(K)}
    assert np.abs(np.convolve(after, np.ones(100) / 100, "valid")).max() < 0.02 and np.abs(after).max() < 0.15


def test_a_frozen_threshold_keeps_the_budget_on_other_tokens():
    """Inference: scores drift no more and the threshold stays; found on some held-out tokens it is right on others."""
    config, rng = moe(budget={"warmup_steps": 0}), np.random.default_rng(4)

    def slots(width: float) -> np.ndarray:
        return -np.cumsum(rng.exponential(width, (T, 7)), 1) + rng.normal(0, 0.3, (T, 1))

    def mean_k(threshold: float, width: float) -> float:
        return float(np.mean([1 + (slots(width) > threshold).sum(1).mean() for _ in range(4)]))

    control = np.zeros(num_controls(config.router, config), np.float32)
    for step in range(200):
        margins = slots(0.5)
        kept = float(T + (margins > control[THRESHOLD]).sum()) if control[DYNAMIC] else float(T * K)
        control = updated_control(config.router, config, control, told(count(margins, MARGIN_BINS), kept, step + 1))
    assert mean_k(control[THRESHOLD], 0.5) == pytest.approx(K, rel=0.02)
    assert abs(mean_k(control[THRESHOLD], 0.6) / K - 1) > 0.03  # held-out text of another kind
    again = threshold_of(count(slots(0.6), MARGIN_BINS), MARGIN_BINS, T * (K - 1))
    assert mean_k(again, 0.6) == pytest.approx(K, rel=0.02)


def test_groups_and_expert_thresholds_follow_their_targets():
    config = moe(groups={"num_groups": 4, "easy": 2, "hard": 4, "target": 2.5}, variant="expert_threshold")
    assert num_controls(config.router, config) == NUM_CONTROLS + E
    rng = np.random.default_rng(2)
    hard, scores = rng.normal(size=T), rng.beta(2, 5, (T, E))
    signals = told(
        count(rng.normal(size=T), MARGIN_BINS),
        float(T * K),
        1,
        difficulty=count(hard, DIFFICULTY_BINS),
        scores=np.stack([count(row, score_bins(config.router)) for row in scores.T]),
    )
    control = updated_control(config.router, config, np.zeros(NUM_CONTROLS + E, np.float32), signals)
    assert (hard > control[GROUP_THRESHOLD]).mean() == pytest.approx(0.25, abs=0.01)
    np.testing.assert_allclose(
        control[NUM_CONTROLS:], np.quantile(scores, 1 - K / E, axis=0), atol=score_bins(config.router).width
    )


def test_the_integral_term_pushes_against_an_excess():
    config = moe(budget={"mu": 0.1})
    start = np.zeros(NUM_CONTROLS, np.float32)
    start[DYNAMIC] = 1.0
    margins = count(np.random.default_rng(3).normal(size=7 * T), MARGIN_BINS)
    assert config.router.budget.mu == 0.1
    high, even = (updated_control(config.router, config, start, told(margins, k * T, 9)) for k in (5.0, 4.0))
    assert high[THRESHOLD] - even[THRESHOLD] == pytest.approx(0.1)


def test_the_table_forgets_by_occurrence():
    table = updated_table(np.zeros((3, 2), np.float32), np.array([2.0, 0.0, 1.0]), np.array([3.0, 0.0, -1.0]), 0.95)
    np.testing.assert_allclose(table, [[1.5, 1], [0, 0], [-1, 1]])
    again = updated_table(table, np.array([3.0, 1.0, 0.0]), np.array([0.0, 2.0, 0.0]), 0.95)
    np.testing.assert_allclose(again, [[1.5 * 0.95**3, 1], [2, 1], [-1, 1]], rtol=1e-6)


def placebo(k: int, k_min: int, k_max: int, groups: dict | None = None) -> MoeConfig:
    features = {"alpha": 0.0, "difficulty_head": False}
    router = {"type": "dmr", "variant": "random_k", "budget": {"k_min": k_min, "k_max": k_max}, "features": features}
    return MoeConfig.model_validate(
        {"num_experts": 12, "num_experts_per_tok": k, "router": router | ({"groups": groups} if groups else {})}
    )


def test_the_mean_of_the_placebo_is_the_target_or_it_is_refused():
    for k, k_min, k_max in itertools.product(range(1, 13), repeat=3):
        if not k_min <= k <= k_max:
            continue
        if k_min == k or k == k_max:
            with pytest.raises(ValueError, match=f"room below and above num_experts_per_tok={k}"):
                placebo(k, k_min, k_max)
            continue
        moe = placebo(k, k_min, k_max)
        drawn = moe.router.drawn(moe)
        assert sum(drawn) == k * len(drawn) and len(drawn) > 1
        assert k_min in drawn or k_max in drawn  # as wide as the bounds allow
        assert k_min <= drawn[0] and drawn[-1] <= k_max


def test_groups_bound_the_placebo_too():
    groups = {"num_groups": 4, "easy": 2, "hard": 2, "target": 2.0}
    moe = placebo(4, 1, 12, groups)
    assert moe.router.drawn(moe) == range(2, 7)
    with pytest.raises(ValueError, match="experts of router.groups.hard groups above it"):
        placebo(6, 1, 12, groups)
