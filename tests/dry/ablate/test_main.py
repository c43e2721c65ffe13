"""A whole ablation whose training runs are replaced by a curve: planning, pairing, resuming, searching, judging."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mindmoe.ablate import jobs
from mindmoe.ablate.main import main
from mindmoe.errors import ConfigError, UserError
from mindmoe.load import load_config

BASE = """
name: base
model: {vocab_size: 64, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1,
        head_dim: 8, intermediate_size: 16, max_position_embeddings: 64, rope_scaling: null}
moe: {num_experts: 8, num_experts_per_tok: 2}
train: {steps: 100, seq_length: 16, global_batch_size: 4, micro_batch_size: 4}
optim: {warmup_steps: 10}
data: {sources: unused}
"""
ABLATION = """
name: lab
output_dir: OUT
base: base.yaml
arms:
  static: {role: baseline}
  dmr:
    role: candidate
    set: {moe.router: {type: dmr, budget: {k_max: 4}}}
  placebo: {role: placebo, set: {moe.balance.z_coef: 0.001}}
  qaoa:
    role: tuned
    tune: &tune {solver: exhaustive, trials: 6, initial: 4, steps: 20, space: {moe.router.tau: [0.5, 1.0, 2.0, 4.0]}}
  tpe: {role: tuned_rival, tune: *tune}
seeds: [0, 1, 2, 3]
looks: [{seeds: 4, alpha: 0.05}]
scaling: {budgets: [0.5, 2.0], seeds: 2}
"""
GAIN = {"dmr": 0.2, "placebo": 0.0}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    (tmp_path / "base.yaml").write_text(BASE)
    file = tmp_path / "lab.yaml"
    file.write_text(ABLATION.replace("OUT", str(tmp_path / "runs")))
    started: list[str] = []

    def train(command: list[str], **_):
        from mindmoe.load import load_config

        run = load_config(command[-1])
        started.append(run.name)
        loss = 4.0 - 0.3 * np.log(run.train.steps / 100) + 0.05 * run.seed - 0.3 * np.log1p(GAIN.get(run.name[:-6], 0))
        loss += 0.02 * abs(run.moe.router.tau - 2.0) + 1e-3 * np.sin(7.0 * run.seed + len(run.name))
        folder = Path(run.output_dir) / run.name
        folder.mkdir(parents=True)
        records = [
            {"kind": "train", "step": s, "step_seconds": 0.5, "mean_k": 2.0, "load_cv": 0.2, "max_vio": 0.5,
             "dropped_fraction": 0.0} for s in (run.train.steps // 2, run.train.steps)
        ] + [{"kind": "eval", "step": run.train.steps, "loss": loss}]  # fmt: skip
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(jobs, "subprocess", SimpleNamespace(run=train))  # of jobs alone: others start programs too
    return file, started


def test_a_gain_that_is_there_is_found_once_and_nothing_is_run_twice(lab, capsys):
    file, started = lab
    assert main(file, [], report_only=False) == 0
    said = capsys.readouterr().out
    assert "GO-NEXT" in said and "dmr: passes every test of the rule" in said
    trials = [name for name in started if name.startswith("trial-")]
    assert len(started) == len(set(started)) == 5 * 4 + 4 + len(trials)
    assert len(trials) == 4  # both searches try each of the four settings, and share the runs
    page = (file.parent / "runs" / "lab" / "report.html").read_text()
    assert "GO-NEXT" in page and "Held-out loss" in page and "Search of qaoa" in page
    before = len(started)
    assert main(file, [], report_only=False) == 0 and len(started) == before


def test_searches_choose_the_best_setting_and_are_charged(lab):
    file, _ = lab
    main(file, [], report_only=False)
    records = (file.parent / "runs" / "lab" / "tune" / "qaoa.jsonl").read_text().splitlines()
    best = min(map(json.loads, records), key=lambda record: record["value"])
    assert best["settings"] == {"moe.router.tau": 2.0}
    config = (file.parent / "runs" / "lab" / "configs" / "qaoa-seed0.yaml").read_text()
    assert "tau: 2.0" in config


def test_pairs_share_seed_and_data_order(lab):
    from mindmoe.load import load_config

    file, started = lab
    main(file, [], report_only=False)
    configs = file.parent / "runs" / "lab" / "configs"
    for seed in range(4):
        runs = [load_config(configs / f"{arm}-seed{seed}.yaml") for arm in ("static", "dmr", "placebo")]
        assert {(run.seed, run.data.seed) for run in runs} == {(seed, seed)}
    assert load_config(configs / "static-seed0-x0.5.yaml").train.steps == 50
    assert "static-seed2-x0.5" not in started


def test_without_runs_there_is_no_verdict(lab, capsys):
    file, started = lab
    assert main(file, [], report_only=True) == 0
    assert "no verdict yet" in capsys.readouterr().out and not started


def test_an_interrupted_log_line_is_cut(lab):
    file, started = lab
    log = file.parent / "runs" / "lab" / "tune" / "qaoa.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"levels": [1], "set')
    main(file, [], report_only=False)
    assert len(log.read_text().splitlines()) == 6


def test_a_failed_run_names_its_log(lab, monkeypatch):
    file, _ = lab
    monkeypatch.setattr(jobs, "subprocess", SimpleNamespace(run=lambda *_, **__: SimpleNamespace(returncode=3)))
    with pytest.raises(UserError, match=r"exit code 3 .*logs"):
        main(file, [], report_only=False)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("arms.dmr.role=baseline", "2 baselines must be exactly 1"),
        ("seeds=[0, 0, 1, 2]", "distinct"),
        ("looks=[{seeds: 9, alpha: 0.05}]", "at most the 4 of seeds"),
        ("arms.qaoa.role=candidate", "must go with a tune section"),
        ("arms.dmr.set={moe.nonsense: 1}", "moe.nonsense"),
        ("arms.qaoa.tune.space={moe.router.score: [1.0, 2.0]}", "is no number"),
    ],
)
def test_a_wrong_plan_is_refused_before_the_first_run(lab, word, message):
    file, started = lab
    with pytest.raises((ConfigError, UserError), match=message):
        main(file, [word], report_only=False)
    assert not started or "no number" in message


def test_configs_are_those_of_the_runs_and_nothing_starts(lab, capsys):
    file, started = lab
    assert main(file, [], report_only=False, configs_only=True) == 0
    out = capsys.readouterr().out
    assert not started and "16 runs" in out and "searched first: qaoa, tpe" in out
    written = [Path(line) for line in out.splitlines() if line.endswith(".yaml")]
    runs = {path.stem: load_config(path) for path in written}
    assert runs["dmr-seed2"].moe.router.type == "dmr" and runs["dmr-seed2"].seed == 2
    assert runs["static-seed1-x0.5"].train.steps == 50
