"""Configs of MindFormers become ours: every key is accounted for, and figures that follow from several keys agree."""

import math
import random
import re
from pathlib import Path

import pytest
import yaml

from mindmoe.cli.main import main
from mindmoe.config.load import load_config
from mindmoe.host.errors import UserError
from mindmoe.interop.mindformers import import_mindformers, write_import
from mindmoe.optim.schedule import learning_rate

FIRST = """
seed: 7
output_dir: out
run_mode: train
trainer: {type: CausalLanguageModelingTrainer, model_name: "tiny moe"}
runner_config: {epochs: 2, batch_size: 2, sink_mode: True, gradient_accumulation_steps: 3}
optimizer: {type: AdamW, betas: [0.9, 0.99], eps: 1e-6, weight_decay: 0.02}
lr_schedule: {type: CosineWithWarmUpLR, learning_rate: 3e-4, lr_end: 3e-5, warmup_ratio: 0.1, total_steps: -1}
train_dataset: &train_dataset
  data_loader:
    type: BlendedMegatronDatasetDataLoader
    sizes: [4800, 0, 0]
    config: {seed: 5, seq_length: 512, eod_mask_loss: False, reset_position_ids: False, data_path: ["3", a, "1", b]}
  drop_remainder: True
train_dataset_task: {dataset_config: *train_dataset}
context: {mode: 1, device_target: CPU}
parallel_config: {data_parallel: &dp 8, model_parallel: 2, pipeline_stage: 4, expert_parallel: 4, micro_batch_num: 5}
micro_batch_interleave_num: 1
parallel: {dataset_strategy: [[*dp, 1], [*dp, 1]], enable_paralel_optimizer: True}
model:
  model_config:
    vocab_size: 1024
    hidden_size: 64
    num_hidden_layers: 4
    num_attention_heads: 8
    intermediate_size: 256
    moe_intermediate_size: 32
    n_routed_experts: 16
    num_experts_per_tok: 4
    n_shared_experts: 1
    norm_topk_prob: True
    scoring_func: sigmoid
    routed_scaling_factor: 2.5
    n_group: 4
    topk_group: 2
    moe_aux_loss_coeff: 1e-4
    moe_router_load_balancing_type: gbs_aux_loss
    moe_router_enable_expert_bias: True
    moe_router_bias_update_rate: 0.002
    qk_layernorm: True
    compute_dtype: bfloat16
    use_flash_attention: True
callbacks:
  - {type: MFLossMonitor, per_print_times: 5}
  - {type: CheckpointMonitor, save_checkpoint_steps: 40, keep_checkpoint_max: 3, prefix: x}
runner_wrapper: {type: MFTrainOneStepCell, scale_sense: 1.0, use_clip_grad: True, max_grad_norm: 0.5}
"""

SECOND = """
checkpoint: {enable_save: True, save_path: out, save_max: 4, save_interleaved_steps: 25}
training: {steps: 120, local_batch_size: 2, global_batch_size: 32, max_norm: 0.7, seed: 11, deterministic: True}
parallelism: {data_parallel_shard: -1, tensor_parallel: 2, context_parallel: 2, expert_parallel: 4}
optimizer: {type: Muon, weight_decay: 0.1}
lr_scheduler: {type: WarmUpStableDecayLR, learning_rate: 1e-3, lr_end: 1e-4, warmup_steps: 10, decay_start_ratio: 0.75}
train_dataset:
  dataloader:
    type: BlendedMegatronDatasetDataLoader
    sizes: [1000, 0, 0]
    config: {seed: 1, seq_length: 256, reset_attention_mask: True, reset_position_ids: True, eod_mask_loss: True,
             data_path: ["1", d]}
model: {vocab_size: 512, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2,
        intermediate_size: 128, num_experts: 8, num_experts_per_tok: 2, moe_intermediate_size: 32, hidden_act: silu}
"""


@pytest.fixture
def imported(tmp_path: Path):
    def imported(text: str):
        path = tmp_path / "theirs.yaml"
        path.write_text(text)
        found = import_mindformers(path)
        (tmp_path / "ours.yaml").unlink(missing_ok=True)
        write_import(path, tmp_path / "ours.yaml")
        return found, load_config(tmp_path / "ours.yaml")

    return imported


def test_the_first_schema(imported):
    found, run = imported(FIRST)
    assert run.name == "tiny-moe" and run.seed == 7 and run.output_dir == "out"
    assert (run.parallel.dp, run.parallel.tp, run.parallel.pp, run.parallel.ep) == (8, 2, 4, 4)
    assert run.train.micro_batch_size == 2
    assert run.train.global_batch_size == 2 * 8 * 5 * 3  # batch * data parallel * micro-batches * accumulation
    assert run.train.steps == 4800 * 2 // 240
    assert (run.train.mode, run.train.device, run.train.precision, run.train.seq_length) == (
        "pynative",
        "cpu",
        "bf16",
        512,
    )
    optim = run.optim
    assert (optim.lr, optim.beta1, optim.beta2, optim.eps, optim.weight_decay) == (3e-4, 0.9, 0.99, 1e-6, 0.02)
    assert optim.schedule == "cosine" and optim.min_lr_ratio == pytest.approx(0.1)
    assert optim.warmup_steps == 4 and optim.clip_norm == 0.5
    assert [(source.path, source.weight) for source in run.data.sources] == [("a", 3.0), ("b", 1.0)]
    assert run.model.head_dim == 8 and run.model.num_key_value_heads == 8 and run.model.intermediate_size == 32
    assert run.moe is not None and (run.moe.num_experts, run.moe.num_experts_per_tok) == (16, 4)
    router = run.moe.router
    assert (router.score, router.norm_topk, router.route_scale) == ("sigmoid", True, 2.5)
    assert (router.num_groups, router.topk_groups, router.linear_bias) == (4, 2, False)
    assert run.moe.num_shared_experts == 1
    assert run.moe.balance.aux_coef == 1e-4 and run.moe.balance.bias_rate == 0.002
    assert run.checkpoint.every == 40 and run.checkpoint.keep_last == 3 and run.observe.log_every == 5


def test_the_second_schema(imported):
    found, run = imported(SECOND)
    assert (run.parallel.dp, run.parallel.tp, run.parallel.cp, run.parallel.ep) == ("auto", 2, 2, 4)
    assert (run.train.steps, run.train.micro_batch_size, run.train.global_batch_size) == (120, 2, 32)
    assert run.train.mode == "pynative" and run.seed == 11
    assert run.optim.schedule == "wsd" and run.optim.decay_fraction == 0.25 and run.optim.clip_norm == 0.7
    assert run.data.document_attention is True
    assert run.checkpoint.every == 25 and run.output_dir == "out"
    fates = {row.key: row.fate for row in found.rows}
    assert fates["optimizer.type"] == "lost"
    assert fates["train_dataset.dataloader.config.eod_mask_loss"] == "dropped"


@pytest.mark.parametrize("text", [FIRST, SECOND])
def test_every_key_is_told_once_and_every_target_is_ours(imported, text):
    found, run = imported(text)
    told = [row.key for row in found.rows]
    assert sorted(told) == sorted(found.leaves) and len(set(told)) == len(told)
    for row in found.rows:
        assert row.note or row.fate in ("kept", "renamed")
        if row.target:
            node = run
            for part in row.target.split("."):
                node = getattr(node, part)


def test_what_makes_another_run_is_lost_not_dropped(imported, capsys):
    found, _ = imported(FIRST)
    fates = {row.key.rpartition(".")[2]: row.fate for row in found.rows}
    assert fates["qk_layernorm"] == "lost" and fates["hidden_act"] == "lost"
    assert fates["use_flash_attention"] == "dropped"
    printed = capsys.readouterr().out
    assert re.search(r"^lost +model\.model_config\.qk_layernorm", printed, re.MULTILINE)


ONE_STAGE = FIRST.replace("pipeline_stage: 4", "pipeline_stage: 1")
ON = "enable_parallel_optimizer: True"


@pytest.mark.parametrize(
    ("text", "recompute", "layers"),
    [
        ("recompute: True", "full", "all"),
        ("recompute: 2", "full", 2),
        ("recompute: False, select_recompute: True", "selective", "all"),
        ("recompute: False, select_recompute: {mul: True, 'w1.silu': [1, 0]}", "selective", "all"),
        ("recompute: False, select_recompute: False", "none", "all"),
        ("recompute: [0, 0]", "none", "all"),
    ],
)
def test_recomputation_is_kept(imported, text, recompute, layers):
    found, run = imported(ONE_STAGE + f"recompute_config: {{{text}, mp_comm_recompute: True}}\n")
    assert (run.parallel.recompute, run.parallel.recompute_layers) == (recompute, layers)
    assert "lost" not in {row.fate for row in found.rows if row.key.startswith("recompute_config")}


def test_pipeline_stages_recompute_by_themselves(imported):
    found, run = imported(FIRST + "recompute_config: {recompute: [1, 1, 1, 1]}\n")
    assert run.parallel.recompute == "none"
    (row,) = [row for row in found.rows if row.key == "recompute_config.recompute"]
    assert row.fate == "dropped" and "always computes its forward pass again" in row.note


@pytest.mark.parametrize(
    ("text", "zero"),
    [
        ("enable_parallel_optimizer: False", 0),
        (ON, 1),
        (f"{ON}, parallel_optimizer_config: {{gradient_accumulation_shard: False}}", 1),
        (f"{ON}, parallel_optimizer_config: {{gradient_accumulation_shard: True}}", 2),
    ],
)
def test_what_is_sharded_over_replicas_is_kept(imported, text, zero):
    _, run = imported(ONE_STAGE.replace("enable_paralel_optimizer: True", text))
    assert run.parallel.zero == zero


@pytest.mark.parametrize(
    ("text", "recompute", "layers"),
    [
        ("{mode: full, full_recompute_layer: 1}", "full", 1),
        ("{mode: select, select_module: [mlp]}", "selective", "all"),
        ("{mode: none}", "none", "all"),
    ],
)
def test_recomputation_of_the_second_schema_is_kept(imported, text, recompute, layers):
    _, run = imported(SECOND + f"recompute: {text}\n")
    assert (run.parallel.recompute, run.parallel.recompute_layers) == (recompute, layers)


def test_an_unknown_key_is_lost(imported):
    found, _ = imported(SECOND + "\nrecompute_confg: {recompute: True}\n")
    assert {row.key: row.fate for row in found.rows}["recompute_confg.recompute"] == "lost"


def test_fewer_experts_ranks_than_wanted_are_told(imported):
    found, run = imported(FIRST.replace("&dp 8", "&dp 2"))
    assert run.parallel.ep == 2
    row = next(row for row in found.rows if row.key == "parallel_config.expert_parallel")
    assert row.fate == "lost" and "2 of 4" in row.note


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run_mode: predict", "run_mode=predict"),
        ("a: 1", "neither runner_config"),
        ("[1, 2]", "no mapping"),
        ("a: [", "not valid YAML"),
        ("training: {steps: 1}\ntraining: {steps: 2}", "duplicate key"),
        ("<<: {a: 1}", "write the keys out"),
        ("training: !!python/object:os.system {}", "is not allowed"),
        ("training: {steps: many}", "steps"),
        ("runner_config: {batch_size: 2}\nlr_schedule: {learning_rate: fast}", "learning_rate"),
    ],
)
def test_other_files_are_refused(tmp_path, capsys, text, expected):
    (tmp_path / "x.yaml").write_text(text)
    code = main(["config", "import-mindformers", str(tmp_path / "x.yaml"), "--out", str(tmp_path / "y.yaml")])
    assert code == 2 and expected in capsys.readouterr().err
    assert not (tmp_path / "y.yaml").exists()


def test_an_existing_file_is_kept(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(SECOND)
    (tmp_path / "y.yaml").write_text("mine")
    assert main(["config", "import-mindformers", str(tmp_path / "x.yaml"), "--out", str(tmp_path / "y.yaml")]) == 2
    assert (tmp_path / "y.yaml").read_text() == "mine"


def test_a_file_that_aliases_blow_up_is_refused(tmp_path):
    lines = ["a0: &a0 {" + ", ".join(f"k{i}: 1" for i in range(10)) + "}"]
    lines += [f"a{n}: &a{n} {{" + ", ".join(f"k{i}: *a{n - 1}" for i in range(10)) + "}" for n in range(1, 9)]
    (tmp_path / "x.yaml").write_text("training: {steps: 1}\n" + "\n".join(lines))
    with pytest.raises(ValueError, match="more than"):
        import_mindformers(tmp_path / "x.yaml")


@pytest.mark.parametrize("kind", ["ConstantWarmUpLR", "LinearWithWarmUpLR", "CosineWithWarmUpLR"])
def test_the_rate_is_theirs_of_the_next_step(imported, kind):
    """Closed forms of MindFormers' schedules; the installed ones are compared by the peer test."""
    _, run = imported(FIRST.replace("CosineWithWarmUpLR", kind).replace("warmup_ratio: 0.1", "warmup_steps: 10"))
    total, warmup, rate = run.train.steps, 10, 3e-4
    end = 0.0 if kind == "LinearWithWarmUpLR" else 3e-5
    for step in range(total):
        at = step + 1
        share = (at - warmup) / (total - warmup)
        if at < warmup:
            expected = rate * at / warmup
        elif kind == "ConstantWarmUpLR":
            expected = rate
        elif kind == "LinearWithWarmUpLR":
            expected = rate * (1 - share)
        else:
            expected = end + (rate - end) * 0.5 * (1 + math.cos(math.pi * share))
        assert learning_rate(run.optim, step, total) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def row_of(found, key):
    rows = [row for row in found.rows if row.key.endswith(key)]
    return next((row for row in rows if row.key == key), rows[0])


@pytest.mark.parametrize(
    ("gone", "key", "section", "name", "value"),
    [
        (", betas: [0.9, 0.99]", "optimizer.betas", "optim", "beta2", 0.999),
        (", weight_decay: 0.02", "optimizer.weight_decay", "optim", "weight_decay", 0.0),
        (", eps: 1e-6", "optimizer.eps", "optim", "eps", 1e-8),
        ("type: CosineWithWarmUpLR, ", "lr_schedule.type", "optim", "schedule", "constant"),
        (", lr_end: 3e-5", "", "optim", "min_lr_ratio", 0.0),
        (", warmup_ratio: 0.1", "lr_schedule.warmup_steps", "optim", "warmup_steps", 0),
        ("    compute_dtype: bfloat16\n", "compute_dtype", "train", "precision", "bf16"),
        ("seed: 7\n", "seed", "", "seed", 1),
        (", max_grad_norm: 0.5", "", "optim", "clip_norm", 1.0),
        ("use_clip_grad: True, ", "use_clip_grad", "optim", "clip_norm", 0.0),
        ("gradient_accumulation_steps: 3", "", "train", "global_batch_size", 80),
    ],
)
def test_a_key_that_is_left_out_has_mindformers_default_and_is_told(imported, gone, key, section, name, value):
    assert gone in FIRST
    text = FIRST.replace(f", {gone}" if gone.startswith("gradient") else gone, "")
    found, run = imported(text)
    assert getattr(getattr(run, section) if section else run, name) == value
    if key:
        row = row_of(found, key)
        assert "left out: MindFormers takes" in row.note
    told = {row.key: row for row in found.rows}
    for key, expected in (("rope_theta", 10000.0), ("rms_norm_eps", 1e-5), ("attention_bias", False)):
        assert told[f"model.model_config.{key}"].value == getattr(run.model, key) == expected


def test_a_model_that_mindformers_knows_has_its_own_defaults(imported):
    found, run = imported(SECOND.replace("model: {", "model: {model_type: qwen3_moe, "))
    assert (run.model.rms_norm_eps, run.model.max_position_embeddings) == (1e-6, 32768)
    assert run.moe.router.norm_topk is False and row_of(found, "qk_layernorm").fate == "lost"
    _, run = imported(SECOND.replace("model: {", "model: {model_type: glm4_moe, "))
    assert run.moe.router.score == "sigmoid" and run.moe.balance.bias_rate == 0.001
    assert (run.optim.beta2, run.optim.weight_decay) == (0.95, 0.1)


@pytest.mark.parametrize("value", ["sqrtsoftplus", "relu", "3", "[sigmoid]", "Sigmoid"])
@pytest.mark.parametrize("key", ["scoring_func", "moe_router_score_function", "use_gating_sigmoid"])
def test_an_unknown_score_function_is_lost(imported, key, value):
    found, run = imported(FIRST.replace("scoring_func: sigmoid", f"{key}: {value}"))
    row = row_of(found, key)
    assert row.fate == "lost" and "mindmoe has softmax, sigmoid" in row.note
    assert run.moe.router.score == "softmax"


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("compute_dtype: bfloat16", "compute_dtype: float16", "compute_dtype"),
        ("CosineWithWarmUpLR", "PolynomialWithWarmUpLR", "lr_schedule.type"),
        ("device_target: CPU", "device_target: GPU", "device_target"),
        ("mode: 1", "mode: 7", "context.mode"),
        ("norm_topk_prob: True", "norm_topk_prob: perhaps", "norm_topk_prob"),
        ("betas: [0.9, 0.99]", "betas: 0.9", "optimizer.betas"),
        ("type: AdamW", "type: PmaAdamW", "optimizer.type"),
        ('["3", a, "1", b]', '["x", a]', "data_path"),
        ("moe_router_load_balancing_type: gbs_aux_loss", "moe_router_load_balancing_type: sinkhorn", "balancing_type"),
        ("topk_group: 2", "topk_group: 1", "n_group"),
    ],
)
def test_a_value_outside_of_what_is_known_is_lost(imported, old, new, key):
    assert old in FIRST
    found, _ = imported(FIRST.replace(old, new))
    assert row_of(found, key).fate == "lost" and row_of(found, key).note


@pytest.mark.parametrize("word", ["yes", "on", "True", "true"])
def test_switches_are_read_as_mindformers_reads_them(imported, word):
    _, run = imported(FIRST.replace("norm_topk_prob: True", f"norm_topk_prob: {word}"))
    assert run.moe.router.norm_topk is True


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("num_experts_per_tok: 4", "num_experts_chosen: 4"),
        ("num_experts_per_tok: 4", "moe_router_topk: 4"),
        ("n_routed_experts: 16", "expert_num: 16"),
        ("num_attention_heads: 8", "n_head: 8"),
        ("num_hidden_layers: 4", "n_layer: 4"),
        ("moe_intermediate_size: 32", "moe_ffn_hidden_size: 32"),
        ("routed_scaling_factor: 2.5", "moe_router_topk_scaling_factor: 2.5"),
        ("n_group: 4", "moe_router_num_groups: 4"),
        ("moe_router_enable_expert_bias: True", "balance_via_topk_bias: True"),
        ("moe_router_bias_update_rate: 0.002", "topk_bias_update_rate: 0.002"),
        ("scoring_func: sigmoid", "use_gating_sigmoid: True"),
        ("n_shared_experts: 1", "shared_expert_num: 1"),
    ],
)
def test_mindformers_other_names_of_a_key_mean_the_same(imported, ours, theirs):
    found, run = imported(FIRST)
    _, other = imported(FIRST.replace(ours, theirs))
    assert run == other
    found, _ = imported(FIRST.replace(ours, f"{ours}\n    {theirs.split(':')[0]}: 3"))
    assert row_of(found, theirs.split(":")[0]).fate == "lost"


def test_the_loss_over_sequences_has_its_own_coefficient(imported):
    found, run = imported(FIRST.replace("gbs_aux_loss", "seq_aux_loss"))
    assert (run.moe.balance.aux_coef, run.moe.balance.seq_aux_coef) == (0.0, 1e-4)
    assert row_of(found, "moe_aux_loss_coeff").target == "moe.balance.seq_aux_coef"
    found, run = imported(FIRST)
    assert (run.moe.balance.aux_coef, run.moe.balance.seq_aux_coef) == (1e-4, 0.0)
    assert run.moe.balance.aux_over == "running" and row_of(found, "load_balancing_type").fate == "renamed"


@pytest.mark.parametrize("sizes", ["[0, 0, 0]", "[-1, 0, 0]", "[3, 0, 0]", "[]", "[many]", "[True]", "0"])
def test_no_number_follows_from_a_placeholder(tmp_path, sizes):
    path = tmp_path / "theirs.yaml"
    path.write_text(FIRST.replace("[4800, 0, 0]", sizes))
    found = import_mindformers(path)
    assert "steps" not in found.config["train"] and "warmup_steps" not in found.config["optim"]
    for key in ("total_steps", "epochs", "warmup_ratio"):
        assert row_of(found, key).fate == "lost"
    path.write_text(FIRST.replace("    hidden_size: 64\n", ""))
    assert "head_dim" not in import_mindformers(path).config["model"]
    path.write_text(FIRST.replace("    num_attention_heads: 8\n", ""))
    assert not {"head_dim", "num_key_value_heads"} & import_mindformers(path).config["model"].keys()


def test_names_of_a_file_are_escaped(tmp_path, capsys):
    path = tmp_path / "theirs.yaml"
    path.write_text(FIRST + '"a\\nmoe: 1\\e[31m": 1\n')
    write_import(path, tmp_path / "ours.yaml")
    assert "\x1b" not in capsys.readouterr().out
    assert load_config(tmp_path / "ours.yaml").moe.num_experts == 16


@pytest.mark.slow
def test_any_keys_gone_or_replaced_are_imported_or_refused(tmp_path):
    rng = random.Random(0)
    values = ["null", "-1", "0", "1e400", "1e30", "9" * 60, "x", "[]", "{}", "[1, [2]]", "{a: 1}", "true", ".nan", "''"]
    path, out = tmp_path / "theirs.yaml", tmp_path / "ours.yaml"
    for trial in range(400):
        document = yaml.safe_load(FIRST if trial % 2 else SECOND)
        sections = [node for node in every_mapping(document) if node]
        for _ in range(rng.randrange(1, 5)):
            node = rng.choice(sections)
            if node and rng.random() < 0.3:
                del node[rng.choice(list(node))]
            elif node:
                node[rng.choice(list(node))] = f"@{rng.choice(values)}@"
        path.write_text(re.sub(r"'?@(.*?)@'?", r"\1", yaml.safe_dump(document, width=10**6).replace("''", "'")))
        out.unlink(missing_ok=True)
        try:
            assert write_import(path, out) in (0, 1)
        except UserError as error:
            assert error.remedy or "error" in str(error)


def every_mapping(node):
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from every_mapping(value)
    elif isinstance(node, list):
        for value in node:
            yield from every_mapping(value)
