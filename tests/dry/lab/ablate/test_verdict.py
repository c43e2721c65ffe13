"""The verdict: what it demands before it says GO-NEXT, each demand by itself."""

from dataclasses import replace

import numpy as np
import pytest

from mindmoe.lab.ablate.statistics import LOOKS, Look, ScalingFit
from mindmoe.lab.ablate.verdict import GO, KEEP, ArmResult, DecisionRule, decide

SEEDS = tuple(range(12))
RULE = DecisionRule(seeds=SEEDS, looks=LOOKS)
FIT = ScalingFit(slope=1.0, error=0.01, freedom=10)
GOOD = {"load_cv": 0.25, "overflow": 0.0, "mean_k": 2.0, "target_k": 2.0}


def arm(role: str, gain: float, noise: float = 0.002, seeds=SEEDS, **changes) -> ArmResult:
    rng = np.random.default_rng(int(1e6 * gain) + len(role))
    losses = {seed: 4.0 + 0.1 * seed - np.log1p(gain) + rng.normal(0, noise) for seed in seeds}
    return replace(ArmResult(role=role, losses=losses, flops=1.0, seconds=1.0, health=GOOD), **changes)


def family(**changes) -> dict[str, ArmResult]:
    arms = {
        "static": arm("baseline", 0.0),
        "placebo": arm("placebo", 0.001),
        "dmr": arm("candidate", 0.08),
        "qaoa": arm("tuned", 0.02),
        "tpe": arm("tuned_rival", 0.021),
    }
    return {name: value for name, value in (arms | changes).items() if value is not None}


def test_a_clear_gain_goes_on():
    verdict = decide(family(), RULE, FIT)
    assert verdict.answer == GO and verdict.arm == "dmr"
    gain = next(item for item in verdict.comparisons if item.arm == "dmr").iso_token
    assert gain.low < 0.08 < gain.high


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dmr": arm("candidate", 0.02)}, "below 3%"),
        ({"dmr": arm("candidate", 0.05, noise=0.3)}, "lower 95% bound"),
        ({"placebo": None}, "no placebo"),
        ({"placebo": arm("placebo", 0.09)}, "does not beat placebo"),
        ({"dmr": arm("candidate", 0.08, flops=1.2)}, "iso-flop gain"),
        ({"dmr": arm("candidate", 0.08, seeds=(0, 1, 2))}, "too few for the first look"),
        ({"dmr": arm("candidate", 0.08, health=GOOD | {"load_cv": 0.4})}, "load CV"),
        ({"dmr": arm("candidate", 0.08, health=GOOD | {"overflow": 0.01})}, "overflow"),
        ({"dmr": arm("candidate", 0.08, health=GOOD | {"mean_k": 2.1})}, "mean k 2.100"),
    ],
)
def test_each_demand_stops_it(changes, reason):
    verdict = decide(family(**changes), RULE, FIT)
    assert verdict.answer == KEEP
    assert any(line.startswith("dmr: ") and reason in line for line in verdict.reasons), verdict.reasons


@pytest.mark.parametrize(
    ("rival", "answer", "reason"),
    [
        (arm("tuned_rival", 0.021), GO, "passes every test"),
        (arm("tuned_rival", 0.0801), KEEP, "gain over tpe"),
        (None, KEEP, "no arm is tuned classically"),
    ],
)
def test_a_tuned_arm_must_beat_the_classical_search(rival, answer, reason):
    arms = family(dmr=None, qaoa=arm("tuned", 0.08), tpe=rival)
    verdict = decide(arms, RULE, FIT)
    assert verdict.answer == answer and any("qaoa" in line and reason in line for line in verdict.reasons)


def test_an_early_look_decides_and_missing_seeds_are_not_jumped_over():
    early = {name: replace(value, losses={s: value.losses[s] for s in range(4)}) for name, value in family().items()}
    assert decide(early, RULE, FIT).answer == GO
    hole = family()
    hole["dmr"] = replace(hole["dmr"], losses={s: loss for s, loss in hole["dmr"].losses.items() if s != 1})
    assert any("1 of 12 planned pairs" in line for line in decide(hole, RULE, FIT).reasons)


@pytest.mark.slow
def test_a_a_comparisons_of_the_whole_rule_stay_below_5_percent():
    """Two hypotheses without an effect, through the whole verdict, at one look of 5%."""
    rng, wrong, draws = np.random.default_rng(5), 0, 300
    rule = DecisionRule(seeds=(0, 1, 2, 3), looks=(Look(4, 0.05),), threshold=0.0)
    for _ in range(draws):
        arms = {
            name: ArmResult(role=role, losses=dict(enumerate(rng.normal(4, 0.03, 4))), flops=1.0, seconds=1.0)
            for name, role in (("b", "baseline"), ("p", "placebo"), ("d", "candidate"), ("e", "candidate"))
        }
        wrong += decide(arms, rule, FIT).answer == GO
    assert wrong / draws <= 0.05
