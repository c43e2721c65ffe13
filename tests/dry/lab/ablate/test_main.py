"""A whole ablation whose training runs are replaced by a curve: planning, pairing, resuming, searching, judging."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mindmoe.config.load import load_config
from mindmoe.host.errors import ConfigError, UserError
from mindmoe.lab.ablate import jobs
from mindmoe.lab.ablate.main import main
from mindmoe.observe import charts

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
        from mindmoe.config.load import load_config

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


@pytest.mark.slow
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
    from mindmoe.config.load import load_config

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


TRIAL = {"levels": [1], "settings": {"moe.router.tau": 1.0}, "value": 4.0, "loss": 4.0, "load_cv": 0.2,
         "source": "initial", "seconds": 0.0, "gap": None}  # fmt: skip


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "no JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 5000, "nested"),
        (b"null", "object"),
        (b"7", "object"),
        (json.dumps(TRIAL | {"value": "4"}).encode(), "value"),
        (json.dumps(TRIAL | {"value": None}).encode(), "value"),
        (b'{"levels": [1], "value": NaN}', "NaN"),
        (json.dumps({key: TRIAL[key] for key in TRIAL if key != "settings"}).encode(), "settings"),
        (json.dumps(TRIAL | {"levels": [4]}).encode(), "outside the space"),
        (json.dumps(TRIAL | {"levels": [-1]}).encode(), "outside the space"),
        (json.dumps(TRIAL | {"levels": [1, 1]}).encode(), "outside the space"),
        (json.dumps(TRIAL | {"settings": {"moe.router.tau\x1b[2J": 1.0}}).encode(), "outside the space"),
        (b"", "no JSON"),
    ],
)
def test_a_damaged_line_of_a_search_is_told_with_its_number(lab, line, said):
    file, started = lab
    log = file.parent / "runs" / "lab" / "tune" / "qaoa.jsonl"
    log.parent.mkdir(parents=True)
    log.write_bytes(json.dumps(TRIAL).encode() + b"\n" + line + b"\n")
    with pytest.raises(UserError, match="qaoa.jsonl:2: ") as caught:
        main(file, [], report_only=True)
    assert said in str(caught.value) and str(caught.value).isprintable() and not started


@pytest.mark.parametrize(
    "damage",
    [{"loss": "x"}, {"loss": [1]}, {"load": 3, "kind": "routing"}, {"load": [[1.0], [0.5, 0.5]], "kind": "routing"},
     {"kind": "train", "step_seconds": "1"}],
)  # fmt: skip
def test_a_damaged_metrics_record_is_told(lab, damage):
    file, _ = lab
    main(file, [], report_only=False)
    metrics = file.parent / "runs" / "lab" / "dmr-seed1" / "metrics.jsonl"
    with metrics.open("a") as out:
        out.write(json.dumps({"kind": "eval", "step": 100} | damage) + "\n")
    with pytest.raises(UserError, match="metrics.jsonl"):
        main(file, [], report_only=True)


def test_quick_is_small_and_gives_no_verdict(lab, capsys):
    file, started = lab
    assert main(file, [], report_only=False, quick=True) == 0
    said = capsys.readouterr().out
    assert "quick: 6 runs of 25 steps, 1 at a time; the whole plan is 24 runs of 100 steps and 12 trials" in said
    assert sorted(started) == sorted(f"{arm}-seed{seed}" for arm in ("static", "dmr", "placebo") for seed in (0, 1))
    assert "this is no verdict" in said and "GO-NEXT" not in said and "KEEP-STATIC" not in said
    assert "dmr: held-out loss" in said and "from static over 2 pairs" in said
    out = file.parent / "runs" / "lab-quick"
    page = (out / "report.html").read_text()
    assert "no verdict" in page and "KEEP-STATIC" not in page and "paired t tests" not in page
    run = load_config(out / "configs" / "dmr-seed0.yaml")
    assert (run.train.steps, run.optim.warmup_steps, run.moe.router.budget.warmup_steps) == (25, 2, 125)
    before = len(started)
    assert main(file, [], report_only=True, quick=True) == 0 and len(started) == before
    assert not (file.parent / "runs" / "lab").exists()


def test_quick_without_anything_to_compare_is_refused(lab):
    file, _ = lab
    text = file.read_text().replace("  placebo: {role: placebo, set: {moe.balance.z_coef: 0.001}}\n", "")
    file.write_text(text[: text.index("  dmr:")] + text[text.index("  qaoa:") :])
    with pytest.raises(UserError, match="no arm but the baseline is left"):
        main(file, [], report_only=False, quick=True)


def test_loads_of_all_arms_share_their_colours(lab, monkeypatch):
    file, _ = lab
    main(file, [], report_only=False)
    for arm, busiest in (("static", 0.3), ("dmr", 0.9), ("placebo", 0.2)):
        load = [[busiest, *[(1 - busiest) / 7] * 7]] * 2
        with (file.parent / "runs" / "lab" / f"{arm}-seed0" / "metrics.jsonl").open("a") as out:
            out.write(json.dumps({"kind": "routing", "step": 100, "load": load}) + "\n")
    tops = []
    drawn = charts.share_chart
    monkeypatch.setattr(charts, "share_chart", lambda load, top: tops.append(top) or drawn(load, top))
    main(file, [], report_only=True)
    assert tops == pytest.approx([0.9 * 8] * 3)


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
