"""Golden messages: the common mistakes, word for word. Where, value, rule, remedy."""

from collections.abc import Callable

import pytest

from mindmoe.config.load import load_config
from mindmoe.host.errors import ConfigError

Write = Callable[..., str]

# The text to replace in the valid config, its replacement, and what is said.
MISTAKES = {
    "misspelt key": (
        "warmup_steps: 1",
        "warmup_step: 1",
        "20: optim.warmup_step: unknown key; did you mean optim.warmup_steps?",
    ),
    "misspelt section": ("optim:", "optm:", "19: optm: unknown key; did you mean optim?"),
    "key of another section": ("steps: 10", "steps: 10\n  lr: 1", "16: train.lr: unknown key; did you mean optim.lr?"),
    "dashes in a key": ("head_dim: 4", "head-dim: 4", "8: model.head-dim: unknown key; did you mean model.head_dim?"),
    "key out of nowhere": (
        "num_experts: 8",
        "num_experts: 8\n  zzz: 1",
        "13: moe.zzz: unknown key: remove it, known here are num_experts, num_experts_per_tok, num_shared_experts, "
        "router, balance, dispatch",
    ),
    "negative": ("steps: 10", "steps: -3", "15: train.steps=-3: must be greater than 0: raise it"),
    "zero": ("seq_length: 8", "seq_length: 0", "16: train.seq_length=0: must be greater than 0: raise it"),
    "float for a whole number": ("steps: 10", "steps: 1e3", "15: train.steps=1e3: must be a whole number: write 1000"),
    "fraction": ("steps: 10", "steps: 2.5", "15: train.steps=2.5: must be a whole number: write a whole number"),
    "quoted number": ("steps: 10", "steps: '10'", "15: train.steps='10': must be a whole number: remove the quotes"),
    "word for a number": (
        "steps: 10",
        "steps: many",
        "15: train.steps='many': must be a whole number: write a whole number",
    ),
    "boolean for a number": (
        "steps: 10",
        "steps: true",
        "15: train.steps=true: must be a whole number: write a whole number",
    ),
    "no value": (
        "steps: 10",
        "steps:",
        "15: train.steps=null: must be a whole number: give it a value, or remove the key",
    ),
    "infinity": (
        "warmup_steps: 1",
        "lr: .inf\n  warmup_steps: 1",
        "20: optim.lr='.inf': must be a finite number: write a number",
    ),
    "yes": (
        "warmup_steps: 1",
        "warmup_steps: 1\nobserve:\n  tensorboard: yes",
        "22: observe.tensorboard='yes': must be true or false: write true",
    ),
    "sexagesimal": (
        "warmup_steps: 1",
        "warmup_steps: 1\nlaunch:\n  timeout: 12:30:45",
        "22: launch.timeout: '12:30:45' is not a duration: write a number with one of the units ms, s, min, h, d",
    ),
    "wrong unit": (
        "warmup_steps: 1",
        "warmup_steps: 1\ncheckpoint:\n  min_free: 3 parsecs",
        "22: checkpoint.min_free: '3 parsecs' is not a size in bytes: write a number with one of the units "
        "B, KiB, MiB, GiB, TiB, KB, MB, GB, TB",
    ),
    "negative size": (
        "warmup_steps: 1",
        "warmup_steps: 1\ncheckpoint: {min_free: -1}",
        "21: checkpoint.min_free=-1: must be at least 0: raise it",
    ),
    "misspelt choice": (
        "warmup_steps: 1",
        "warmup_steps: 1\n  schedule: cosin",
        "21: optim.schedule='cosin': must be cosine, linear, wsd or constant: did you mean cosine?",
    ),
    "either of two kinds": (
        "warmup_steps: 1",
        "warmup_steps: 1\nparallel: {dp: 0}",
        "21: parallel.dp=0: must be greater than 0 or be auto: raise it",
    ),
    "wrong list entry": (
        "vocab_size: 64",
        "vocab_size: 64\n  layer_types: [full_attention,\n                sliding]",
        "5: model.layer_types.1='sliding': must be sliding_attention or full_attention: "
        "did you mean sliding_attention?",
    ),
    "number for a name": ("name: tiny", "name: 7", "1: name=7: must be text: put it in quotes"),
    "path in a name": (
        "name: tiny",
        "name: a/b",
        "1: name='a/b': must match ^[A-Za-z0-9][A-Za-z0-9._-]*$: use only the characters of the pattern",
    ),
    "scalar for a section": (
        "warmup_steps: 1",
        "warmup_steps: 1\nobserve: 5",
        "21: observe=5: must be a section of keys: indent its keys below it",
    ),
    "missing key": ("  head_dim: 4\n", "", "2: model.head_dim: missing: add it"),
    "source without a path": (
        "sources: data/tokens",
        "sources:\n    - weight: 2",
        "23: data.sources.0.path: missing: add it",
    ),
    "number for a source": (
        "sources: data/tokens",
        "sources: 5",
        "22: data.sources: must be a path, a list of paths, or a list of {path, weight}: write data/my-tokens",
    ),
    "no source": ("sources: data/tokens", "sources: []", "22: data.sources=[...]: must not be empty: give it a value"),
    "heads": (
        "num_key_value_heads: 2",
        "num_key_value_heads: 3",
        "6: model.num_attention_heads=4 must be a multiple of num_key_value_heads=3: change one of them",
    ),
    "top-k above experts": (
        "num_experts_per_tok: 2",
        "num_experts_per_tok: 9",
        "13: moe.num_experts_per_tok=9 must be at most num_experts=8: lower num_experts_per_tok",
    ),
    "nested check": (
        "num_experts_per_tok: 2",
        "num_experts_per_tok: 2\n  router:\n    num_groups: 3",
        "15: moe.router.num_groups=3 must divide num_experts=8: change router.num_groups",
    ),
    "check across sections": (
        "seq_length: 8",
        "seq_length: 64",
        "16: train.seq_length=64 must be at most model.max_position_embeddings=32: lower train.seq_length",
    ),
    "rate above one": (
        "warmup_steps: 1",
        "warmup_steps: 1\n  lr: 3",
        "21: optim.lr=3.0 must be at most 1: AdamW rates are usually 1e-5 to 1e-2",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_golden_message(write: Write, valid: str, mistake: str) -> None:
    old, new, message = MISTAKES[mistake]
    assert valid.count(old) == 1
    with pytest.raises(ConfigError) as info:
        load_config(write(valid.replace(old, new)))
    problems = info.value.problems
    if mistake == "dashes in a key":  # the key that was meant is missing as well
        problems.remove("run.yaml:2: model.head_dim: missing: add it")
    assert problems == [f"run.yaml:{message}"]


def test_every_mistake_is_told_at_once(write: Write, valid: str) -> None:
    text = valid.replace("name: tiny", "name: tiny\nname: tiny").replace("head_dim: 4", "head_dim: x")
    text = text.replace("warmup_steps: 1", "warmup_steps: 11").replace("global_batch_size: 4", "global_batch_size: 6")
    text = text.replace("sources: data/tokens", "sources: [3]")
    with pytest.raises(ConfigError) as info:
        load_config(write(text), ["parallel.dp=2", "observe.log=1", "optim"])
    assert info.value.problems == [
        "run.yaml:2: duplicate key name: it stands at run.yaml:1 already; keep one",
        "override optim: an override must be key=value: write it as optim.lr=3e-4",
        "run.yaml:9: model.head_dim='x': must be a whole number: write a whole number",
        "run.yaml:23: data.sources: must be a path, a list of paths, or a list of {path, weight}: write data/my-tokens",
        "override observe.log=1: unknown key; did you mean observe.log_every?",
        # These sections are sound, so what spans them is checked although others are not.
        "run.yaml:21: optim.warmup_steps=11 must be at most train.steps=10: "
        "lower optim.warmup_steps or raise train.steps",
        "run.yaml:18: train.global_batch_size=6 must be a multiple of train.micro_batch_size * parallel.dp "
        "= 2 * 2 = 4: set train.global_batch_size=8, or lower train.micro_batch_size",
    ]
    assert str(info.value).startswith("7 errors in the config\n  run.yaml:2: ")


def test_several_problems_of_one_section_are_all_told(write: Write, valid: str) -> None:
    with pytest.raises(ConfigError) as info:
        load_config(write(valid.replace("head_dim: 4", "head_dim: 5")), ["model.num_key_value_heads=3"])
    assert info.value.problems == [
        "run.yaml:6: model.num_attention_heads=4 must be a multiple of num_key_value_heads=3: change one of them",
        "run.yaml:8: model.head_dim=5 must be even (RoPE rotates pairs): use 6",
    ]


def test_a_default_at_odds_with_a_setting_is_told_at_the_setting(write: Write, valid: str) -> None:
    with pytest.raises(ConfigError) as info:
        load_config(write(valid.replace("  warmup_steps: 1\n", "  lr: 0.1\n")))
    assert info.value.problems == [
        "run.yaml:15: optim.warmup_steps=100 must be at most train.steps=10: "
        "lower optim.warmup_steps or raise train.steps"
    ]


def test_a_check_that_fails_by_an_override_names_it_once(write: Write, valid: str) -> None:
    with pytest.raises(ConfigError) as info:
        load_config(write(valid), ["train.seq_length=64"])
    assert info.value.problems == [
        "override train.seq_length=64: must be at most model.max_position_embeddings=32: lower train.seq_length"
    ]


def test_each_problem_stays_on_one_printable_line(write: Write, valid: str) -> None:
    text = valid + '"a\\nb\\u001b[2J": 1\n' + "k" * 900 + ": 2\n" + f"output_dir: [{'x' * 5000}]\n"
    with pytest.raises(ConfigError) as info:
        load_config(write(text + "seed: " + "9" * 3000 + "\n"), ["name=" + "y" * 5000])
    assert len(info.value.problems) == 5
    assert all(problem.isprintable() and len(problem) < 300 for problem in info.value.problems)


def test_a_file_of_nothing_but_errors_is_cut_short(write: Write, valid: str) -> None:
    with pytest.raises(ConfigError) as info:
        load_config(write(valid + "".join(f"k{i}: 1\n" for i in range(200))))
    assert len(info.value.problems) == 51
    assert info.value.problems[-1] == "run.yaml:1: more errors follow: mend those above first"
