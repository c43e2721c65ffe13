"""`parallel: auto`, and that what the planner writes is what a run takes."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mindmoe.config.load import config_schema, dump_config, load_config
from mindmoe.host.errors import UserError
from mindmoe.plan.auto import laid_out, layout_sections, planned, workload_of
from mindmoe.plan.document import example_model
from mindmoe.plan.hardware import load_hardware
from mindmoe.plan.layout import Layout
from mindmoe.plan.main import config_fragment
from mindmoe.plan.step import CostModel

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "configs/gpt-oss-120b.yaml"


def test_auto_is_a_value_of_parallel(tmp_path):
    run = load_config(CONFIG, ["parallel=auto"])
    assert run.parallel.planned
    again = tmp_path / "run.yaml"
    again.write_text(dump_config(run))
    assert load_config(again) == run
    assert {"const": "auto"} in config_schema()["properties"]["parallel"]["anyOf"]


def test_auto_goes_with_nothing_else():
    with pytest.raises(UserError, match=r"planned=true must stand alone, not with tp, zero, planned"):
        load_config(CONFIG, ["parallel={planned: true, tp: 2, zero: 1}"])


@pytest.mark.slow
def test_every_layout_of_the_search_is_one_that_the_run_takes(gpt_oss_512):
    run, model = load_config(CONFIG), example_model()
    assert len(gpt_oss_512.result.best) > 10
    for estimate in gpt_oss_512.result.best:
        laid = laid_out(run, model, estimate.layout)
        assert laid.parallel.dp == estimate.layout.dp
        assert not laid.parallel.planned


@pytest.mark.slow
def test_the_written_config_is_the_layout(gpt_oss_512):
    run, model = load_config(CONFIG), example_model()
    for estimate in gpt_oss_512.result.best[:4]:
        written = yaml.safe_load(config_fragment(run, model, estimate.layout, "a test"))
        words = [f"{section}.{key}={value}" for section in written for key, value in written[section].items()]
        assert load_config(CONFIG, words) == laid_out(run, model, estimate.layout)


def test_a_pipeline_says_the_layers_of_its_pieces():
    run, model = load_config(CONFIG), example_model()
    sections = layout_sections(run, model, Layout(dp=128, pp=4, ep=8, zero=1))
    assert sum(sections["parallel"]["split"]) == 36 and len(sections["parallel"]["split"]) == 4
    assert min(sections["parallel"]["split"]) >= 1


@pytest.mark.slow
def test_auto_takes_what_the_search_has_first(capsys, gpt_oss_512):
    run = planned(load_config(CONFIG, ["parallel=auto"]), 512)
    first = gpt_oss_512.result.best[0]
    assert run == laid_out(load_config(CONFIG), example_model(), first.layout)
    told = capsys.readouterr().err
    assert first.layout.describe() in told and "the fastest that fits" in told
    assert f"of {load_hardware('ascend-910b2').memory_gib:.1f} GiB" in told


def test_without_auto_the_layout_is_left_alone():
    run = planned(load_config(CONFIG), 512)
    assert (run.parallel.dp, run.parallel.pp, run.parallel.ep) == (128, 4, 8)


def test_auto_does_not_plan_for_ascend_on_a_cpu():
    run = load_config(CONFIG, ["parallel=auto", "train.device=cpu"])
    with pytest.raises(UserError, match=r"launch\.hardware=ascend-910b2 but train\.device=cpu"):
        planned(run, 8)


def test_stages_pay_for_their_second_forward_pass():
    config = load_config(CONFIG)
    ours = CostModel(load_hardware("ascend-910b2"), workload_of(config))
    others = CostModel(load_hardware("ascend-910b2"), replace(workload_of(config), ours=False))
    layout = Layout(dp=128, pp=4, ep=8, zero=1, split="even")
    assert 1.1 < ours.estimate(layout).step_s / others.estimate(layout).step_s < 1.4  # one pass more in three
    assert ours.memory(layout)[0].activations < others.memory(layout)[0].activations
    flat = Layout(dp=512, ep=8, zero=1)
    assert ours.memory(flat)[0].activations == others.memory(flat)[0].activations


def test_the_states_of_mindmoe_itself():
    """fp32 weights 4, gradients 4, moments 8 bytes a parameter; with ZeRO 1 and 2 also masters, of the own part."""
    model = CostModel(load_hardware("ascend-910b2"), workload_of(load_config(CONFIG)))
    whole, cut, parts = (model.memory(Layout(dp=16, ep=16, zero=zero))[0] for zero in (0, 1, 3))
    assert whole.weights == whole.optimizer / 2 == cut.weights
    grown = whole.gradients + whole.activations + whole.working  # a micro-batch's gradients outgrow its activations
    assert grown == pytest.approx(2 * whole.weights) and whole.activations + whole.working < whole.weights
    assert cut.optimizer < whole.optimizer
    assert parts.weights == parts.gradients == parts.optimizer / 2 < whole.weights


def test_gathered_weights_stay_unless_all_is_computed_again():
    model = CostModel(load_hardware("ascend-910b2"), workload_of(load_config(CONFIG)))
    kept, freed = (model.memory(Layout(dp=512, ep=16, zero=3, recompute=how))[0].working for how in ("ffn", "full"))
    expert = model.workload.architecture.layers[0].params_expert
    assert kept - freed > 4 * 36 * expert / 16
