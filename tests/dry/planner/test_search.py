"""The search: fast, complete, and right against brute force."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from mindmoe.errors import UserError
from mindmoe.load import load_config
from mindmoe.model.config import ModelConfig
from mindmoe.parallel.config import ParallelConfig
from mindmoe.parallel.rules import routing_problems
from mindmoe.planner.architecture import from_config, reference
from mindmoe.planner.auto import workload_of
from mindmoe.planner.hardware import load_hardware
from mindmoe.planner.layout import CONFIG_RECOMPUTE, RECOMPUTES, Layout, batch_problem, mesh_problem
from mindmoe.planner.search import MICRO_BATCHES, NOT_OURS, search
from mindmoe.planner.step import CostModel, Workload

LIMIT = 64.0 * 2**30


def test_512_cards_take_less_than_ten_seconds(gpt_oss_512):
    assert gpt_oss_512.cpu_s < 10.0
    assert gpt_oss_512.result.considered > 200_000


def test_what_is_shown_is_legal_and_fits(gpt_oss_512):
    result = gpt_oss_512.result
    architecture = reference("gpt-oss-120b")
    assert len(result.best) >= 10
    for estimate in result.best:
        assert estimate.layout.cards == 512
        assert mesh_problem(architecture, estimate.layout, 4096) is None
        assert batch_problem(estimate.layout, 2048) is None
        assert estimate.memory.total <= LIMIT
    times = [estimate.step_s for estimate in result.best]
    assert times == sorted(times)
    kinds = [(e.layout.tp, e.layout.pp, e.layout.ep, e.layout.etp) for e in result.best]
    assert len(set(kinds)) == len(kinds)


def test_the_pareto_front_is_not_dominated(gpt_oss_512):
    result = gpt_oss_512.result
    front = np.array([(memory, step_s) for memory, step_s, _ in result.pareto])
    assert (np.diff(front[:, 0]) > 0).all()
    assert (np.diff(front[:, 1]) < 0).all()
    for memory, step_s in front:
        assert not ((result.points[:, 0] < memory) & (result.points[:, 1] < step_s)).any()


@pytest.mark.slow
def test_search_finds_the_best_of_brute_force():
    """8 cards, few enough to estimate many layouts without any of the search's short cuts."""
    model = CostModel(
        load_hardware("h100"), Workload(architecture=reference("gpt-oss-20b"), seq_length=4096, global_batch_size=64)
    )
    degrees = product((1, 2), (1, 2, 8), (1,), (1, 2, 4, 8))
    meshes = [
        Layout(dp=8 // (tp * pp * cp), tp=tp, pp=pp, cp=cp, ep=ep, etp=etp)
        for tp, pp, cp, ep in degrees
        if 8 % (tp * pp * cp) == 0
        for etp in {1, tp}
    ]
    legal = [mesh for mesh in meshes if not mesh_problem(model.workload.architecture, mesh, 4096)]
    steps = [estimate.step_s for mesh in legal for estimate in _plain_pipelines(model, mesh)]
    assert len(steps) > 10
    assert search(model, 8).best[0].step_s <= min(steps) * (1 + 1e-9)


def _plain_pipelines(model, mesh):
    limit = model.hardware.memory_gib * 2**30
    for size in MICRO_BATCHES:
        for zero, recompute in product((1, 3), RECOMPUTES):
            layout = replace(mesh, micro_batch_size=size, zero=zero, recompute=recompute)
            if batch_problem(layout, 64):
                continue
            estimate = model.estimate(replace(layout, dispatcher=model.best_dispatcher(layout)))
            if estimate.memory.total <= limit:
                yield estimate


def test_what_cannot_be_is_explained():
    workload = Workload(architecture=reference("deepseek-v3"), seq_length=4096, global_batch_size=64)
    with pytest.raises(UserError, match=r"no layout of 8 cards fits 64 GiB: the smallest needs \d+"):
        search(CostModel(load_hardware("ascend-910b2"), workload), 8)
    with pytest.raises(UserError, match="no layout of 7 cards is legal"):
        search(CostModel(load_hardware("ascend-910b2"), replace(workload, global_batch_size=1)), 7)


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (Layout(tp=16, dp=32), "key-value heads"),
        (Layout(dp=512, ep=3), "number of experts"),
        (Layout(dp=64, pp=64, ep=1), "number of layers"),
        (Layout(dp=8, tp=2, ep=8, etp=4), "etp must be 1 or tp"),
        (Layout(dp=2, ep=8), "dp x cp x tp"),
    ],
)
def test_each_rule_has_its_reason(layout, reason):
    assert reason in (mesh_problem(reference("gpt-oss-120b"), layout, 4096) or "")


def test_a_dense_model_has_no_expert_degrees():
    model = ModelConfig(
        vocab_size=32768,
        hidden_size=1024,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=64,
        intermediate_size=4096,
    )
    workload = Workload(architecture=from_config("dense", model, None), seq_length=2048, global_batch_size=64)
    result = search(CostModel(load_hardware("ascend-910b2"), workload), 8)
    assert {(layout.ep, layout.etp) for _, _, layout in result.pareto} == {(1, 1)}
    assert result.rejected["a dense model has ep = etp = 1"] > 0


def test_policies_are_all_searched(gpt_oss_512):
    result = gpt_oss_512.result
    layouts = [layout for _, _, layout in result.pareto] + [estimate.layout for estimate in result.best]
    assert {layout.recompute for layout in layouts} == set(CONFIG_RECOMPUTE)  # those that mindmoe has
    assert {layout.zero for layout in layouts} >= {1, 3}  # mindmoe's ZeRO 2 has whole gradients for a while as well
    assert result.rejected[NOT_OURS] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "words", "stages"),
    [
        ("dmr", [], {1}),  # its heads learn from the loss, which the last stage alone can measure
        ("dmr", ["moe.router.difficulty.target=table"], {1, 2, 4, 8, 16}),
        ("moge", [], {1, 2, 4, 8, 16}),
    ],
)
def test_layouts_that_a_router_refuses_are_not_planned(preset, words, stages):
    configs = Path(__file__).resolve().parents[3] / "configs"
    config = load_config(configs / "moe-10b-a1b.yaml", words, configs / "router" / f"{preset}.yaml")
    result = search(CostModel(load_hardware("ascend-910b2"), workload_of(config)), 32)
    assert {estimate.layout.pp for estimate in result.best} <= stages
    assert len({estimate.layout.pp for estimate in result.best}) > 1 or stages == {1}
    assert ("moe.router.type=dmr does not work so spread" in result.rejected) is (preset == "dmr")
    for estimate in result.best[:5]:
        layout = estimate.layout
        shape = {axis: getattr(layout, axis) for axis in ("dp", "tp", "pp", "cp", "schedule", "chunks")}
        assert not list(routing_problems(config.moe, ParallelConfig(**shape)))
