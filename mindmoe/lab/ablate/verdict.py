"""GO-NEXT or KEEP-STATIC, with every reason (dry).

GO-NEXT means that a larger test is worth its cost, no more. It needs a mean gain of at least the threshold, a
significant paired test at a planned look, a win over the placebo too, and healthy routing. A search by QAOA counts only
against an equal budget of classical search.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mindmoe.lab.ablate.statistics import Gain, Look, ScalingFit, compute_equivalent_gain, holm, paired_t

Role = Literal["baseline", "placebo", "candidate", "control", "tuned", "tuned_rival"]
"""`tuned` is a candidate whose settings came from the solver under test, `tuned_rival` the same budget of trials given
to a classical solver; a `control` is reported and decides nothing."""

GO, KEEP = "GO-NEXT", "KEEP-STATIC"


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmResult:
    """What an arm's complete runs measured, by seed.

    Attributes:
        losses: final held-out loss [nats].
        flops: training FLOPs of a run, realised k, router and tuning trials counted.
        seconds: wall-clock of a run without start-up [s].
        health: mean figures of the routing: load_cv, overflow, mean_k, target_k.
    """

    role: Role
    losses: Mapping[int, float]
    flops: float
    seconds: float
    health: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmComparison:
    """An arm against another, over the seeds that both have."""

    arm: str
    against: str
    seeds: int
    difference: float
    deviation: float
    p_value: float
    iso_token: Gain
    iso_flop: Gain
    iso_wall_clock: Gain


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The answer, for which arm, and why."""

    answer: str
    arm: str
    reasons: tuple[str, ...]
    comparisons: tuple[ArmComparison, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionRule:
    """What was fixed before the first run."""

    seeds: tuple[int, ...]
    looks: tuple[Look, ...]
    threshold: float = 0.03
    max_cv_ratio: float = 1.25
    max_overflow: float = 0.005
    max_k_error: float = 0.02
    basis: Literal["iso_flop", "iso_wall_clock"] = "iso_flop"


def compare(
    name: str, against: str, arms: Mapping[str, ArmResult], rule: DecisionRule, fit: ScalingFit
) -> ArmComparison | None:
    """The paired comparison of two arms; None with fewer than two common seeds."""
    arm, other = arms[name], arms[against]
    common = [seed for seed in rule.seeds if seed in arm.losses and seed in other.losses]
    if len(common) < 2:
        return None
    differences = np.array([other.losses[seed] - arm.losses[seed] for seed in common])
    test = paired_t(differences)
    return ArmComparison(
        arm=name,
        against=against,
        seeds=len(common),
        difference=test.mean,
        deviation=test.deviation,
        p_value=test.p_value,
        iso_token=compute_equivalent_gain(differences, fit),
        iso_flop=compute_equivalent_gain(differences, fit, float(np.log(other.flops / arm.flops))),
        iso_wall_clock=compute_equivalent_gain(differences, fit, float(np.log(other.seconds / arm.seconds))),
    )


def decide(arms: Mapping[str, ArmResult], rule: DecisionRule, fit: ScalingFit) -> Verdict:
    """The verdict over every arm with the role `candidate` or `tuned`.

    Args:
        arms: results by name; exactly one has the role `baseline`.
        rule: plan and limits.
        fit: of the baseline.
    """
    by_role = {role: [name for name, arm in arms.items() if arm.role == role] for role in
               ("baseline", "placebo", "candidate", "tuned", "tuned_rival")}  # fmt: skip
    (baseline,) = by_role["baseline"]
    comparisons = [compare(name, baseline, arms, rule, fit) for name in arms if name != baseline]
    done = tuple(item for item in comparisons if item is not None)
    hypotheses = _hypotheses(by_role, baseline)
    reasons: list[str] = []
    chosen, rejected = "", _rejected(hypotheses, arms, rule, fit)
    for name, rivals in hypotheses.items():
        problems = _problems(name, rivals, arms, by_role, rule, fit, rejected)
        reasons += [f"{name}: {problem}" for problem in problems]
        if not problems:
            chosen = name
            reasons.append(f"{name}: passes every test of the rule")
    if not hypotheses:
        reasons.append("no arm is a candidate")
    return Verdict(answer=GO if chosen else KEEP, arm=chosen, reasons=tuple(reasons), comparisons=done)


def _hypotheses(by_role: Mapping[str, list[str]], baseline: str) -> dict[str, list[str]]:
    """Each candidate and all whom it must beat, the one that its test is about first."""
    return {name: [baseline, *by_role["placebo"]] for name in by_role["candidate"]} | {
        name: [*by_role["tuned_rival"], baseline, *by_role["placebo"]] for name in by_role["tuned"]
    }


def _last_look(count: int, rule: DecisionRule) -> Look | None:
    """The latest planned look that so many seeds allow."""
    return next((look for look in reversed(rule.looks) if look.seeds <= count), None)


def _differences(name: str, against: str, arms: Mapping[str, ArmResult], rule: DecisionRule) -> np.ndarray:
    """Baseline - arm over the leading planned seeds that both have, in the planned order."""
    values: list[float] = []
    for seed in rule.seeds:
        if seed not in arms[name].losses or seed not in arms[against].losses:
            break
        values.append(arms[against].losses[seed] - arms[name].losses[seed])
    return np.array(values)


def _rejected(
    hypotheses: Mapping[str, list[str]], arms: Mapping[str, ArmResult], rule: DecisionRule, fit: ScalingFit
) -> dict[str, bool]:
    """Which candidates beat the first of their rivals at some planned look, Holm's correction applied at each look."""
    rejected = dict.fromkeys(hypotheses, False)
    for look in rule.looks:
        p_values = {}
        for name, rivals in hypotheses.items():
            differences = _differences(name, rivals[0], arms, rule)
            if len(differences) >= look.seeds and not rejected[name]:
                p_values[name] = paired_t(_adjusted(name, rivals[0], arms, rule, fit, look.seeds)).p_value
        # A hypothesis without data still counts: a family does not shrink because a run is missing.
        padded = p_values | {name: 1.0 for name in hypotheses if name not in p_values and not rejected[name]}
        for name, reject in holm(padded, look.alpha).items():
            rejected[name] = rejected[name] or reject
    return rejected


def _adjusted(
    name: str, against: str, arms: Mapping[str, ArmResult], rule: DecisionRule, fit: ScalingFit, count: int
) -> np.ndarray:
    """Differences in units of ln(compute), the cost of the arm taken off as the basis of the decision demands."""
    cost = "flops" if rule.basis == "iso_flop" else "seconds"
    shift = float(np.log(getattr(arms[against], cost) / getattr(arms[name], cost)))
    return _differences(name, against, arms, rule)[:count] / fit.slope + shift


def _problems(
    name: str,
    rivals: Sequence[str],
    arms: Mapping[str, ArmResult],
    by_role: Mapping[str, list[str]],
    rule: DecisionRule,
    fit: ScalingFit,
    rejected: Mapping[str, bool],
) -> list[str]:
    """Every reason against going on with an arm."""
    problems = []
    if not by_role["placebo"]:
        problems.append("there is no placebo arm, so a gain could come from variety alone")
    if arms[name].role == "tuned" and not by_role["tuned_rival"]:
        problems.append("no arm is tuned classically with the same budget, so a gain could come from tuning alone")
    planned = rule.looks[-1].seeds
    for rival in rivals:
        comparison = compare(name, rival, arms, rule, fit)
        count = len(_differences(name, rival, arms, rule))
        look = _last_look(count, rule)
        if comparison is None or look is None:
            problems.append(f"{count} of {planned} planned pairs with {rival} are there, too few for the first look")
            continue
        gain: Gain = getattr(comparison, rule.basis)
        basis = rule.basis.replace("_", "-")
        if rival == rivals[0]:
            if gain.mean < rule.threshold:
                problems.append(f"{basis} gain over {rival} is {gain.mean:+.1%}, below {rule.threshold:.0%}")
            if gain.lower_bound <= 0:
                problems.append(f"the lower 95% bound of the {basis} gain over {rival} is {gain.lower_bound:+.1%}")
            if not rejected[name]:
                problems.append(
                    f"{basis} test against {rival}: p = {comparison_p(name, rival, arms, rule, fit, look):.3f} after "
                    f"{look.seeds} of {planned} pairs, not significant at {look.alpha:g} with Holm's correction"
                )
        elif gain.lower_bound <= 0:
            problems.append(f"it does not beat {rival}: lower 95% bound of the {basis} gain {gain.lower_bound:+.1%}")
    return problems + _unhealthy(name, arms, by_role["baseline"][0], rule)


def comparison_p(
    name: str, against: str, arms: Mapping[str, ArmResult], rule: DecisionRule, fit: ScalingFit, look: Look
) -> float:
    """One-sided p of an arm against another at a look, on the basis of the decision."""
    return paired_t(_adjusted(name, against, arms, rule, fit, look.seeds)).p_value


def _unhealthy(name: str, arms: Mapping[str, ArmResult], baseline: str, rule: DecisionRule) -> list[str]:
    """Side effects that forbid a change whatever the gain."""
    health, before = arms[name].health, arms[baseline].health
    problems = []
    if "load_cv" in health and health["load_cv"] > rule.max_cv_ratio * before.get("load_cv", np.inf):
        problems.append(f"load CV {health['load_cv']:.2f} is over {rule.max_cv_ratio:g} times {before['load_cv']:.2f}")
    if health.get("overflow", 0.0) > rule.max_overflow:
        problems.append(f"{health['overflow']:.2%} of the slots overflow, over {rule.max_overflow:.1%}")
    if "mean_k" in health and abs(health["mean_k"] / health["target_k"] - 1.0) > rule.max_k_error:
        problems.append(
            f"mean k {health['mean_k']:.3f} is off its target {health['target_k']:g} by over {rule.max_k_error:.0%}"
        )
    return problems
