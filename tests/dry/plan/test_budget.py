"""Budgets: the effective training time of the reliability notes, and the arithmetic of days and energy."""

import pytest

from mindmoe.plan.architecture import reference
from mindmoe.plan.budget import budget, effective_share, optimal_interval
from mindmoe.plan.hardware import load_hardware


@pytest.mark.parametrize(
    ("hours", "restart_min", "percent"),
    [
        (12, 10, 97.9),
        (12, 2, 99.0),
        (24, 10, 98.8),
        (24, 2, 99.4),
        (99, 10, 99.6),
        (99, 2, 99.7),
    ],
)
def test_effective_training_time_is_the_tabled_one(hours, restart_min, percent):
    assert 100 * effective_share(1.0, 60.0 * restart_min, 3600.0 * hours) == pytest.approx(percent, abs=0.06)


def test_the_interval_is_optimal():
    stall, restart, mtbf = 5.0, 300.0, 86400.0
    best = optimal_interval(stall, mtbf)

    def loss(interval: float) -> float:
        return stall / interval + (interval / 2 + restart) / mtbf

    assert loss(best) < min(loss(0.9 * best), loss(1.1 * best))
    assert 1 - effective_share(stall, restart, mtbf) == pytest.approx(loss(best))


def test_budget_of_the_project_plan():
    cost = budget(
        reference("gpt-oss-120b"),
        load_hardware("ascend-910b2"),
        cards=512,
        seq_length=4096,
        tokens=2.5e12,
        tokens_per_s=1e6,
    )
    assert cost.flops_total == pytest.approx(1.8e24, rel=0.03)  # the plan's own figure: all parameters
    assert cost.flops_active == pytest.approx(7.7e22, rel=0.01)
    assert cost.flops == pytest.approx(2.5e12 * 32.72e9, rel=1e-3)
    assert cost.days == pytest.approx(2.5e6 / 86400)
    assert cost.days_real > cost.days
    assert cost.energy_mwh == pytest.approx(512 * 0.6 * 1.3 * cost.days * 24 / 1000)
    assert cost.checkpoint_bytes == pytest.approx(14 * 116_829_156_672)
    assert cost.mtbf_s == pytest.approx(99 * 3600, rel=0.01)  # 264 node-days over 64 nodes
    assert cost.effective_sync < cost.effective_async < 1.0


def test_a_cluster_that_always_fails_gets_nothing_done():
    assert effective_share(10.0, 600.0, 300.0) == 0.0
