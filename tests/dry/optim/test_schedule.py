"""Learning-rate curves against their closed forms."""

import math

import pytest

from mindmoe.optim.config import OptimConfig
from mindmoe.optim.schedule import learning_rate

TOTAL, WARM = 100, 10


def curve(schedule: str, **changes: float) -> list[float]:
    config = OptimConfig(lr=1.0, min_lr_ratio=0.1, warmup_steps=WARM, schedule=schedule, **changes)
    return [learning_rate(config, step, TOTAL) for step in range(TOTAL)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_warm_up_is_linear_and_starts_above_zero(schedule):
    assert curve(schedule)[:WARM] == pytest.approx([(step + 1) / WARM for step in range(WARM)])


def test_cosine():
    expected = [
        0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step + 1 - WARM) / (TOTAL - WARM))) for step in range(WARM, TOTAL)
    ]
    assert curve("cosine")[WARM:] == pytest.approx(expected)


def test_linear():
    expected = [1 - 0.9 * (step + 1 - WARM) / (TOTAL - WARM) for step in range(WARM, TOTAL)]
    assert curve("linear")[WARM:] == pytest.approx(expected)


def test_wsd_is_flat_then_linear_over_the_last_part():
    values = curve("wsd", decay_fraction=0.3)
    assert values[WARM:70] == [1.0] * 60
    assert values[70:] == pytest.approx([1 - 0.9 * (step + 1 - 70) / 30 for step in range(70, 100)])


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 0.1), ("linear", 0.1), ("wsd", 0.1), ("constant", 1.0)])
def test_last_step(schedule, last):
    assert curve(schedule)[-1] == pytest.approx(last)


def test_no_warm_up():
    assert learning_rate(OptimConfig(lr=1.0, warmup_steps=0, schedule="constant"), 0, 10) == 1.0
