"""The statistics of a verdict: paired t with planned looks, Holm, and compute-equivalent gain (dry).

Pairs share a seed, so initialisation, data order and held-out tokens; the difference of a pair is what is tested. A
bootstrap over a handful of seeds is not used: with 4 to 8 of them it rejects a true null in 8 to 12% of cases.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mindmoe.host.errors import UserError


@dataclass(frozen=True, slots=True)
class Look:
    """A planned analysis: after `seeds` pairs, one-sided at level `alpha`."""

    seeds: int
    alpha: float


LOOKS = (Look(4, 0.010), Look(8, 0.020), Look(12, 0.025))
"""The overall level of these three is about 4.4%."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedT:
    """A one-sided paired t test of `mean > 0`.

    Attributes:
        count: pairs.
        mean: of the differences.
        deviation: standard deviation of the differences.
        p_value: one-sided.
        low, high: two-sided 95% interval of the mean.
    """

    count: int
    mean: float
    deviation: float
    p_value: float
    low: float
    high: float


def paired_t(differences: Sequence[float] | np.ndarray) -> PairedT:
    """The test of differences (n), n >= 2.

    Raises:
        ValueError: fewer than two pairs.
    """
    values = np.asarray(differences, np.float64)
    count = len(values)
    if count < 2:
        raise ValueError(f"a paired t test needs 2 pairs, there are {count}")
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    error = deviation / np.sqrt(count)
    if error == 0.0:  # identical arms, or a difference that never varies
        return PairedT(count=count, mean=mean, deviation=0.0, p_value=0.0 if mean > 0 else 1.0, low=mean, high=mean)
    half = float(stats.t.ppf(0.975, count - 1) * error)
    return PairedT(
        count=count,
        mean=mean,
        deviation=deviation,
        p_value=float(stats.t.sf(mean / error, count - 1)),
        low=mean - half,
        high=mean + half,
    )


def holm(p_values: Mapping[str, float], alpha: float) -> dict[str, bool]:
    """Which hypotheses are rejected at family level `alpha` (Holm 1979: step down, smallest p first)."""
    rejected = dict.fromkeys(p_values, False)
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        if p_values[name] > alpha / (len(p_values) - place):
            break
        rejected[name] = True
    return rejected


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingFit:
    """loss = intercept - slope * ln(compute), near the budget of the comparison.

    Attributes:
        slope: -d loss / d ln(compute) [nats].
        error: standard error of the slope.
        freedom: degrees of freedom of that error.
    """

    slope: float
    error: float
    freedom: int


def fit_scaling(compute: Sequence[float], losses: Sequence[float], seeds: Sequence[int]) -> ScalingFit:
    """Least squares over complete runs of several budgets, each seed with an intercept of its own.

    Args:
        compute: relative or absolute, of each run.
        losses: final held-out loss of each run [nats].
        seeds: of each run; runs of a seed are paired, so that the spread between seeds does not blur the slope.

    Raises:
        UserError: too few runs for a slope with an error, or loss does not fall with compute.
    """
    x, y = np.log(np.asarray(compute, np.float64)), np.asarray(losses, np.float64)
    names = np.unique(seeds)
    columns = [(np.asarray(seeds) == name).astype(np.float64) for name in names]
    design = np.stack([-x, *columns], axis=1)
    freedom = len(x) - design.shape[1]
    if freedom < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        raise UserError(
            f"{len(x)} scaling runs of {len(names)} seeds give no slope with an error",
            "run at least two budgets for each of two seeds, or three budgets of one",
        )
    beta, *_ = np.linalg.lstsq(design, y, rcond=None)
    residual = y - design @ beta
    variance = float(residual @ residual) / freedom
    error = float(np.sqrt(variance * np.linalg.inv(design.T @ design)[0, 0]))
    if beta[0] <= 0:
        raise UserError(
            f"held-out loss does not fall with compute (slope {beta[0]:.4g} nats per factor e)",
            "raise train.steps or widen scaling.budgets: gains cannot be put in units of compute here",
        )
    return ScalingFit(slope=float(beta[0]), error=error, freedom=freedom)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """Compute-equivalent gain: the extra compute that would give the baseline the same loss, as a fraction.

    Attributes:
        mean: point estimate.
        low, high: two-sided 95% interval; it holds the error of the slope as well.
        lower_bound: one-sided 95% bound.
    """

    mean: float
    low: float
    high: float
    lower_bound: float


def compute_equivalent_gain(differences: Sequence[float] | np.ndarray, fit: ScalingFit, shift: float = 0.0) -> Gain:
    """exp((L_baseline - L_arm) / slope + shift) - 1.

    Args:
        differences: (n) baseline loss - arm loss of each pair [nats].
        fit: of the baseline.
        shift: ln(baseline cost / arm cost), for a gain at equal FLOPs or equal wall-clock instead of equal tokens.

    Returns:
        Interval by the delta method on the logarithm; degrees of freedom by Welch and Satterthwaite.
    """
    test = paired_t(differences)
    mean = test.mean / fit.slope
    of_pairs = test.deviation**2 / test.count / fit.slope**2
    of_slope = (test.mean * fit.error / fit.slope**2) ** 2
    variance = of_pairs + of_slope
    if variance == 0.0:
        value = float(np.expm1(mean + shift))
        return Gain(mean=value, low=value, high=value, lower_bound=value)
    freedom = variance**2 / (of_pairs**2 / (test.count - 1) + of_slope**2 / fit.freedom)
    error = np.sqrt(variance)
    two, one = (float(stats.t.ppf(level, freedom)) * error for level in (0.975, 0.95))
    low, middle, high, bound = (float(np.expm1(mean + shift + off)) for off in (-two, 0.0, two, -one))
    return Gain(mean=middle, low=low, high=high, lower_bound=bound)
