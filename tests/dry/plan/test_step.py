"""Step times: bounds, sums, the closed form against the simulated schedule."""

from dataclasses import replace

import pytest

from mindmoe.pipeline.schedule import build_schedule, simulate
from mindmoe.plan.architecture import reference
from mindmoe.plan.compute import layer_terms
from mindmoe.plan.hardware import load_hardware
from mindmoe.plan.layout import DISPATCHERS, RECOMPUTES, ZEROS, Layout
from mindmoe.plan.step import CostModel, Workload, split_layers

HARDWARE = load_hardware("ascend-910b2")
MODEL = CostModel(HARDWARE, Workload(architecture=reference("gpt-oss-120b"), seq_length=4096, global_batch_size=1024))
LAYOUTS = [
    Layout(dp=128, pp=4, ep=8),
    Layout(dp=64, pp=8, ep=8, recompute="full"),
    Layout(dp=512, ep=16, zero=3),
    Layout(dp=64, tp=2, pp=4, ep=16, recompute="selective", zero=2),
    Layout(dp=128, pp=4, ep=8, schedule="zb_h1"),
    Layout(dp=128, pp=4, ep=8, schedule="interleaved", chunks=3),
    Layout(dp=32, tp=2, pp=4, cp=2, ep=8, etp=2),
    Layout(dp=128, pp=4, ep=8, schedule="gpipe"),
    Layout(dp=128, pp=4, ep=8, split="even"),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_parts_add_up_to_the_step(layout):
    estimate = MODEL.estimate(layout)
    assert sum(estimate.parts.values()) == pytest.approx(estimate.step_s, rel=1e-9)
    assert min(estimate.parts.values()) >= 0.0
    assert 0.0 < estimate.mfu < HARDWARE.efficiency.gemm


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_closed_form_is_near_the_simulated_schedule(layout):
    """5%: the closed form takes unequal stages one after the other where the schedule overlaps them."""
    closed = MODEL.screen([layout]).step_s[0, ZEROS.index(layout.zero), RECOMPUTES.index(layout.recompute)]
    assert closed == pytest.approx(MODEL.estimate(layout).step_s, rel=0.05)


def test_long_steps_continue_the_steady_state():
    """A step of many micro-batches is extrapolated; here against the schedule in full."""
    layout = Layout(dp=16, pp=4, ep=8, schedule="interleaved", chunks=2)
    model = CostModel(HARDWARE, replace(MODEL.workload, global_batch_size=1024))
    pieces = model._piece_times(layout, model._layer_times(model.work(layout)))[0]
    forward, backward, weight = pieces
    durations = [
        [{"F": forward[piece], "B": backward[piece] + weight[piece], "W": 0.0} for piece in (stage, stage + 4)]
        for stage in range(4)
    ]
    full = simulate(build_schedule("interleaved", 4, 64, 2), durations).makespan
    assert model._pipeline_simulated(layout, pieces) == pytest.approx(full, rel=1e-6)


def test_products_take_at_least_their_flops_at_the_reachable_peak():
    work = MODEL.work(Layout(dp=128, pp=4, ep=8))
    layer = MODEL.workload.architecture.layers[1]
    terms = layer_terms(HARDWARE, MODEL.workload.architecture, layer, work)
    for gemm in layer.gemms:
        term = next(term for term in terms if term.name == gemm.name)
        least = 2.0 * 4096 * gemm.k * gemm.n / (HARDWARE.peak() * HARDWARE.efficiency.gemm)
        assert min(term.forward, term.backward, term.weight) >= least


def test_recomputation_costs_time_and_balance_saves_it():
    times = [MODEL.estimate(replace(LAYOUTS[0], recompute=recompute)).step_s for recompute in RECOMPUTES]
    assert times == sorted(times)
    balanced = CostModel(HARDWARE, replace(MODEL.workload, routing_time="balanced"))
    assert balanced.estimate(LAYOUTS[0]).step_s < times[0]


def test_the_best_dispatcher_is_the_fastest():
    for ep in (2, 8, 16, 64):
        layout = Layout(dp=128, pp=4, ep=ep)
        steps = {kind: MODEL.estimate(replace(layout, dispatcher=kind)).step_s for kind in DISPATCHERS}
        assert steps[MODEL.best_dispatcher(layout)] == min(steps.values())


def test_experts_inside_the_node_exchange_faster():
    """The dividing line on A2 nodes: eight cards share links, more go through the port."""
    shares = []
    for ep in (8, 32, 64):
        estimate = MODEL.estimate(Layout(dp=128, pp=4, ep=ep, dispatcher="all_to_all"))
        shares.append(estimate.parts["ep comm"] / estimate.step_s)
    assert shares == sorted(shares)
    assert shares[1] > 2 * shares[0]


def test_layers_are_all_placed_and_the_head_is_allowed_for():
    for count, stages, chunks in ((36, 4, 1), (36, 8, 1), (61, 4, 8), (94, 8, 4), (5, 5, 1), (36, 32, 1), (3, 2, 1)):
        for how in ("even", "balanced"):
            split = split_layers(count, stages, chunks, 1.5, how)
            assert sum(split) == count
            assert len(split) == stages * chunks
            assert min(split[:-1]) >= 1
    assert split_layers(36, 4, 1, 0.0, "even") == (9, 9, 9, 9)
    assert split_layers(36, 4, 1, 3.0, "balanced") == (9, 10, 10, 7)
