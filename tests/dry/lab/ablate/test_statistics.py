"""The statistics against SciPy, closed forms and simulation."""

import numpy as np
import pytest
from scipy import stats

from mindmoe.host.errors import UserError
from mindmoe.lab.ablate.statistics import (
    LOOKS,
    Look,
    ScalingFit,
    compute_equivalent_gain,
    fit_scaling,
    holm,
    paired_t,
)

EXACT = ScalingFit(slope=0.96, error=0.0, freedom=100)


def rejects_at(differences, looks):
    """The number (R) of the first look that rejects `mean <= 0`, or -1, of (R, n) differences in order of the seeds."""
    found = np.full(len(differences), -1)
    for number, look in enumerate(looks):
        if look.seeds > differences.shape[1]:
            break
        part = differences[:, : look.seeds]
        error = part.std(axis=1, ddof=1) / np.sqrt(look.seeds)
        crossed = part.mean(axis=1) > stats.t.ppf(1.0 - look.alpha, look.seeds - 1) * error
        found = np.where((found < 0) & crossed, number, found)
    return found


def test_paired_t_equals_scipy():
    values = np.random.default_rng(0).normal(0.3, 1.0, 7)
    test = paired_t(values)
    want = stats.ttest_1samp(values, 0.0, alternative="greater")
    assert test.p_value == pytest.approx(want.pvalue)
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (test.low, test.high) == pytest.approx((interval.low, interval.high))


def test_equal_arms_are_no_evidence():
    assert paired_t([0.0, 0.0, 0.0]).p_value == 1.0
    assert rejects_at(np.zeros((1, 12)), LOOKS).tolist() == [-1]
    with pytest.raises(ValueError, match="2 pairs"):
        paired_t([1.0])


def type_one_error(looks, draws):
    """Share of A/A comparisons that a plan of looks calls better, by simulation of normal differences."""
    differences = np.random.default_rng(0).standard_normal((draws, max(look.seeds for look in looks)))
    return (rejects_at(differences, looks) >= 0).mean()


def test_the_three_looks_err_in_at_most_5_percent_of_a_a_comparisons():
    """20,000 draws: the standard error of a rate of 4.4% is 0.15%."""
    assert 0.035 < type_one_error(LOOKS, 20_000) <= 0.05
    peeking = [Look(n, 0.05) for n in range(3, 13)]
    assert type_one_error(peeking, 20_000) > 0.12  # the simulation can tell a bad plan from a good one


def test_looks_are_the_t_tests_of_leading_pairs():
    values = np.random.default_rng(1).normal(1.0, 1.0, (200, 12))
    for row, found in zip(values, rejects_at(values, LOOKS), strict=True):
        crossed = [i for i, look in enumerate(LOOKS) if paired_t(row[: look.seeds]).p_value < look.alpha]
        assert found == (crossed[0] if crossed else -1)
    assert (rejects_at(values[:, :5], LOOKS) <= 0).all()  # looks that the data do not reach are not taken


@pytest.mark.parametrize(
    ("p_values", "rejected"),
    [
        ({"a": 0.01, "b": 0.04}, {"a": True, "b": True}),
        ({"a": 0.03, "b": 0.04}, {"a": False, "b": False}),
        ({"a": 0.04, "b": 0.001, "c": 0.03}, {"b": True, "c": False, "a": False}),
    ],
)
def test_holm(p_values, rejected):
    assert holm(p_values, 0.05) == rejected


def test_scaling_fit_finds_a_planted_slope_through_the_spread_of_seeds():
    rng = np.random.default_rng(2)
    compute = np.tile([0.8, 1.0, 1.25], 4)
    seeds = np.repeat(np.arange(4), 3)
    losses = 4.0 - 0.5 * np.log(compute) + rng.normal(0, 0.2, 4)[seeds] + rng.normal(0, 0.002, 12)
    fit = fit_scaling(compute, losses, seeds)
    assert fit.slope == pytest.approx(0.5, abs=3 * fit.error) and fit.error < 0.01 and fit.freedom == 7


@pytest.mark.parametrize("runs", [([1.0, 1.25], [4.0, 3.9], [0, 0]), ([1.0, 1.0, 1.0], [4.0, 3.9, 4.1], [0, 0, 0])])
def test_a_slope_without_data_is_refused(runs):
    with pytest.raises(UserError, match="no slope"):
        fit_scaling(*runs)


def test_a_rising_loss_is_refused():
    with pytest.raises(UserError, match="does not fall"):
        fit_scaling([0.8, 1.0, 1.25], [4.0, 4.1, 4.2], [0, 0, 0])


def test_gain_recovers_a_planted_shift_of_3_percent():
    rng = np.random.default_rng(3)
    gains = [
        compute_equivalent_gain(EXACT.slope * np.log(1.03) + rng.normal(0, 0.01, 12), EXACT).mean for _ in range(300)
    ]
    assert np.mean(gains) == pytest.approx(0.03, abs=0.003)


def test_the_interval_covers_the_truth_and_holds_the_error_of_the_slope():
    rng = np.random.default_rng(4)
    hits, true, slope = 0, 0.05, 0.5
    for _ in range(2000):
        fit = ScalingFit(slope=slope + rng.normal(0, 0.05), error=0.05, freedom=60)
        gain = compute_equivalent_gain(slope * np.log1p(true) + rng.normal(0, 0.02, 6), fit)
        hits += gain.low <= true <= gain.high
    assert 0.93 < hits / 2000 < 0.97
    differences = rng.normal(0.05, 0.01, 6)
    exact, vague = (compute_equivalent_gain(differences, ScalingFit(slope=0.5, error=e, freedom=5)) for e in (0.0, 0.1))
    assert vague.high - vague.low > 1.5 * (exact.high - exact.low)


def test_a_dearer_arm_gains_less_at_equal_cost():
    differences = [0.03, 0.031, 0.029]
    token = compute_equivalent_gain(differences, EXACT)
    flop = compute_equivalent_gain(differences, EXACT, float(np.log(1 / 1.10)))
    assert 1.0 + flop.mean == pytest.approx((1.0 + token.mean) / 1.10)
