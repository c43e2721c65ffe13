"""The command: what it prints and writes, and the documentation that repeats its figures."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mindmoe.config.load import dump_config, load_config
from mindmoe.config.run import RunConfig, resolve
from mindmoe.host.errors import UserError
from mindmoe.parallel.config import ParallelConfig
from mindmoe.plan.auto import workload_of
from mindmoe.plan.document import blocks, rewrite
from mindmoe.plan.hardware import load_hardware
from mindmoe.plan.layout import Layout
from mindmoe.plan.main import config_fragment, plan
from mindmoe.plan.report import html_table
from mindmoe.plan.step import CostModel
from mindmoe.plan.tables import TableData, best_table

ROOT = Path(__file__).parents[3]


def run_config(**train: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "small",
            "data": {"sources": ["unused"]},
            "model": {
                "vocab_size": 32768,
                "hidden_size": 1024,
                "num_hidden_layers": 8,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 64,
                "intermediate_size": 1024,
            },
            "moe": {"num_experts": 32, "num_experts_per_tok": 4},
            "train": {
                "steps": 1000,
                "seq_length": 2048,
                "global_batch_size": 64,
                "micro_batch_size": 1,
                "precision": "bf16",
            }
            | train,
        }
    )


def test_a_plan_prints_tables_and_writes_config_and_report(tmp_path, capsys):
    out = tmp_path / "plans" / "best.yaml"
    assert plan(run_config(), 16, "ascend-910b2", explain=True, out=out, check=None) == 0
    printed = capsys.readouterr().out
    for expected in (
        "Fastest layouts",
        "legal and fits",
        "Memory of a rank",
        "expert gate and up",
        "Budget",
        "Nothing was run on Ascend",
    ):
        assert expected in printed

    chosen = yaml.safe_load(out.read_text())
    parallel = ParallelConfig.model_validate(chosen["parallel"])
    assert int(parallel.dp) * parallel.tp * parallel.pp * parallel.cp == 16
    assert run_config(**chosen["train"]).train.micro_batch_size == chosen["train"]["micro_batch_size"]

    page = out.with_suffix(".html").read_text()
    assert "data:image/png;base64," in page
    assert not re.search(r"https?://|//[a-z]+\.|<script|@import|url\(", page)
    assert "Config of the first layout" in page


def test_a_check_reports_success_and_failure(tmp_path, capsys):
    header = "id,model,hardware,cards,seq,gbs,mbs,tp,pp,ep,step_s\n"
    path = tmp_path / "rows.csv"
    path.write_text(header + "far,gpt-oss-120b,H100,64,4096,512,1,1,4,8,1.0\n")
    assert plan(None, 1, "h100", explain=False, out=None, check=path) == 1
    assert "far" in capsys.readouterr().out
    assert plan(None, 1, "h100", explain=False, out=None, check=ROOT / "mindmoe/plan/anchors.csv") == 0


def test_mistakes_of_the_user():
    with pytest.raises(UserError, match="nothing to plan"):
        plan(None, 1, "h100", explain=False, out=None, check=None)
    with pytest.raises(UserError, match="h100 has no fp32 peak on file"):
        plan(run_config(precision="fp32"), 16, "h100", explain=False, out=None, check=None)
    with pytest.raises(UserError, match="cards=0"):
        plan(run_config(), 0, "h100", explain=False, out=None, check=None)


def test_a_capacity_factor_reaches_the_workload():
    config = run_config()
    assert config.moe is not None
    moe = config.moe.model_copy(update={"dispatch": config.moe.dispatch.model_copy(update={"kind": "capacity"})})
    assert workload_of(config.model_copy(update={"moe": moe})).max_imbalance == 1.25


def test_the_fragment_names_every_choice_once():
    config = run_config()
    model = CostModel(load_hardware("ascend-910b2"), workload_of(config))
    text = config_fragment(config, model, Layout(dp=4, ep=2, zero=2), "a test")
    assert "#" not in text.split("\n", 1)[1]
    for key in (
        "dp",
        "tp",
        "pp",
        "ep",
        "cp",
        "etp",
        "zero",
        "recompute",
        "schedule",
        "chunks",
        "dispatcher",
        "micro_batch_size",
        "split",
    ):
        assert len(re.findall(rf"\b{key}: ", text)) == 1


def test_text_in_the_report_is_escaped():
    assert "<b>" not in html_table(TableData("<b>", (">a<b>",), [("<b>&",)])).replace("<tbody>", "")


def test_the_documentation_shows_the_current_figures(gpt_oss_512):
    page = (ROOT / "docs/planner.md").read_text()
    assert rewrite(page, blocks(gpt_oss_512.result)) == page


def test_a_page_without_its_marks_is_refused():
    with pytest.raises(UserError, match="marks the blocks"):
        rewrite("no marks", {"anchors": ""})


def test_the_config_to_use_and_the_next_command_come_first(tmp_path, capsys):
    """The command as it is printed makes the run that was planned."""
    path = tmp_path / "small.yaml"
    path.write_text(dump_config(run_config()))
    config = load_config(path, ["name=other"])
    assert plan(config, 16, "ascend-910b2", False, None, None, (str(path), "name=other")) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# Layout planned for other on 16 ascend-910b2\n")
    line = next(line for line in printed.splitlines() if line.startswith("  mindmoe launch "))
    words = shlex.split(line)
    assert words[3:5] == ["--cards", "16"] and words[5:9] == ["--nodes", "hosts.txt", "--cards-per-node", "8"]
    run = load_config(words[2], words[9:])
    keys = yaml.safe_load(printed.split("Write these")[0])
    assert run.name == "other" and resolve(run, 16).parallel.dp == keys["parallel"]["dp"]
    assert printed.index("parallel:") < printed.index("Fastest layouts")


def test_the_layout_of_the_config_is_scored_beside_the_search(capsys):
    plan(run_config(), 16, "ascend-910b2", False, None, None)
    row = next(line for line in capsys.readouterr().out.splitlines() if "config" in line and "dp16" in line)
    assert row.split()[1] == "config"
    plan(run_config(global_batch_size=8), 16, "ascend-910b2", False, None, None)
    assert "the config's own layout is none of 16 cards" in capsys.readouterr().out


def test_ties_are_marked():
    model = CostModel(load_hardware("ascend-910b2"), workload_of(run_config()))
    first = model.estimate(Layout(dp=16, ep=2))
    others = [replace(first, step_s=factor * first.step_s) for factor in (1.09, 1.11)]
    rows = best_table([first, *others], first)
    assert [row[0] for row in rows.rows] == ["1", "2 =", "3", "config ="]
