"""Simulated power loss: see mindmoe/checkpoint/torture/power_loss.py."""

import os
from pathlib import Path

import pytest

from mindmoe.checkpoint.torture.power_loss import MUTATIONS, Trace, losses, trace_saves, without

STATES_PER_CRASH = int(os.environ.get("MINDMOE_TEST_CRASH_STATES", "12"))


@pytest.fixture
def trace(ram: Path) -> Trace:
    """What a few saves did."""
    return trace_saves(ram / "live")


@pytest.mark.slow
def test_power_loss_at_any_moment(trace: Trace, ram: Path) -> None:
    results = list(losses(trace, ram / "crashed", STATES_PER_CRASH))
    assert len(results) > 200
    assert not [loss for loss in results if loss]


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_simulation_notices_what_is_left_out(trace: Trace, ram: Path, mutation: str) -> None:
    changed = without(trace, mutation)
    assert len(changed[0]) < len(trace[0])
    assert any(losses(changed, ram / "crashed", STATES_PER_CRASH)), f"without {mutation} nothing was lost"
