"""The search: fast, complete, and right against brute force."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from mindmoe.config.load import load_config
from mindmoe.config.run import RunConfig
from mindmoe.host.errors import ConfigError, UserError
from mindmoe.plan.auto import laid_out, workload_of
from mindmoe.plan.document import example_model, example_run
from mindmoe.plan.hardware import load_hardware
from mindmoe.plan.layout import CONFIG_RECOMPUTE, ZEROS, Layout
from mindmoe.plan.search import MICRO_BATCHES, search
from mindmoe.plan.step import CostModel

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
LIMIT = 64.0 * 2**30


def test_512_cards_take_less_than_ten_seconds(gpt_oss_512):
    assert gpt_oss_512.cpu_s < 10.0
    assert gpt_oss_512.result.considered > 200_000


def test_what_is_shown_is_legal_and_fits(gpt_oss_512):
    result = gpt_oss_512.result
    assert len(result.best) >= 10
    for estimate in result.best:
        assert estimate.layout.cards == 512
        assert laid_out(example_run(), example_model(), estimate.layout)
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


def planned_on(hardware: str, config: str, *words: str) -> tuple[RunConfig, CostModel]:
    run = load_config(CONFIGS / f"{config}.yaml", words)
    return run, CostModel(load_hardware(hardware), workload_of(run))


@pytest.mark.slow
def test_search_finds_the_best_of_brute_force():
    """8 cards, few enough to estimate many layouts without any of the search's short cuts."""
    run, model = planned_on("h100", "gpt-oss-20b", "train.global_batch_size=64")
    degrees = product((1, 2), (1, 2, 8), (1,), (1, 2, 4, 8))
    meshes = [
        Layout(dp=8 // (tp * pp * cp), tp=tp, pp=pp, cp=cp, ep=ep, etp=etp)
        for tp, pp, cp, ep in degrees
        if 8 % (tp * pp * cp) == 0
        for etp in {1, tp}
    ]
    steps = [estimate.step_s for mesh in meshes for estimate in _plain_pipelines(run, model, mesh)]
    assert len(steps) > 10
    assert search(run, model, 8).best[0].step_s <= min(steps) * (1 + 1e-9)


def _plain_pipelines(run, model, mesh):
    limit = model.hardware.memory_gib * 2**30
    for size, zero, recompute in product(MICRO_BATCHES, ZEROS, CONFIG_RECOMPUTE):
        layout = replace(mesh, micro_batch_size=size, zero=zero, recompute=recompute)
        try:
            laid_out(run, model, layout)
        except ConfigError:
            continue
        estimate = model.estimate(replace(layout, dispatcher=model.best_dispatcher(layout, ["all_to_all"])))
        if estimate.memory.total <= limit:
            yield estimate


def test_what_cannot_be_is_explained():
    with pytest.raises(UserError, match=r"no layout of 2 cards fits 64 GiB: the smallest needs \d+"):
        search(*planned_on("ascend-910b2", "gpt-oss-120b"), 2)
    with pytest.raises(UserError, match=r"no layout of 37 cards is legal: dp x micro_batch_size must divide"):
        search(*planned_on("ascend-910b2", "gpt-oss-120b", "train.global_batch_size=1"), 37)


def test_a_mesh_of_an_unusual_kind_is_looked_at_where_no_other_fits():
    """Two nodes of one card: a tensor group over both is slow, but holds least."""
    run, model = planned_on("ascend-910b2", "gpt-oss-20b", "train.global_batch_size=1")
    apart = model.hardware.model_copy(update={"cards_per_node": 1, "memory_gib": 1024.0})
    usual = search(run, CostModel(apart, model.workload), 2)
    assert {layout.tp for _, _, layout in usual.pareto} == {1}
    small = apart.model_copy(update={"memory_gib": 0.999 * usual.pareto[0][0] / 2**30})
    found = search(run, CostModel(small, model.workload), 2).best
    assert found[0].layout.tp == 2 and all(2 in (estimate.layout.tp, estimate.layout.etp) for estimate in found)


def test_a_dense_model_has_no_expert_degrees():
    result = search(*planned_on("ascend-910b2", "dense-warmup", "train.precision=bf16"), 8)
    assert {(layout.ep, layout.etp) for _, _, layout in result.pareto} == {(1, 1)}


def test_policies_are_all_searched(gpt_oss_512):
    result = gpt_oss_512.result
    layouts = [layout for _, _, layout in result.pareto] + [estimate.layout for estimate in result.best]
    assert {layout.recompute for layout in layouts} == {"none", "full"}  # `ffn` is neither fastest nor smallest here
    assert {layout.zero for layout in layouts} >= {1, 3}  # mindmoe's ZeRO 2 has whole gradients for a while as well


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
    config = load_config(CONFIGS / "moe-10b-a1b.yaml", words, CONFIGS / "router" / f"{preset}.yaml")
    model = CostModel(load_hardware("ascend-910b2"), workload_of(config))
    result = search(config, model, 32)
    assert {estimate.layout.pp for estimate in result.best} <= stages
    assert len({estimate.layout.pp for estimate in result.best}) > 1 or stages == {1}
    assert any("router" in reason for reason in result.rejected) is (preset == "dmr")
    for estimate in result.best[:5]:
        assert laid_out(config, model, estimate.layout)
