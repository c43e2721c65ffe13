"""Files, includes and overrides to a config, and back to YAML."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mindmoe.config.load import dump_config, load_config, load_section
from mindmoe.data.config import PrepareConfig
from mindmoe.host.errors import ConfigError, UserError

Write = Callable[..., str]

MODEL = """\
model:
  vocab_size: 64
  hidden_size: 16
  num_hidden_layers: 2
  num_attention_heads: 4
  num_key_value_heads: 2
  head_dim: 4
  intermediate_size: 16
moe:
  num_experts: 8
  num_experts_per_tok: 2
"""
RUN = """\
include: model/small.yaml
name: tiny
train: {steps: 10, seq_length: 8, global_batch_size: 4, micro_batch_size: 2}
optim: {warmup_steps: 1}
data: {sources: data/tokens}
"""


def _problems(path: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as info:
        load_config(path, overrides)
    return info.value.problems


def test_values_arrive_typed(write: Write, valid: str) -> None:
    run = load_config(write(valid + "checkpoint: {min_free: 3GiB}\nlaunch: {timeout: 2h}\n"), ["optim.lr=1e-5"])
    assert run.optim.lr == 1e-5
    assert run.checkpoint.min_free == 3 * 2**30
    assert run.launch.timeout == 7200.0
    assert run.data.sources[0].path == "data/tokens"
    assert run.moe is not None and run.moe.num_experts == 8


def test_a_byte_order_mark_is_no_content(write: Write, valid: str) -> None:
    assert load_config(write(b"\xef\xbb\xbf" + valid.encode())).name == "tiny"


def test_the_including_file_wins_key_by_key(write: Write) -> None:
    write(MODEL, "configs/model/small.yaml")
    path = write(RUN + "model: {hidden_size: 32}\n", "configs/run.yaml")
    run = load_config(path)
    assert run.model.hidden_size == 32
    assert run.model.vocab_size == 64


def test_later_includes_win_over_earlier_ones(write: Write) -> None:
    write(MODEL, "model/small.yaml")
    write("optim: {lr: 0.5, eps: 1e-6}\n", "a.yaml")
    write("optim: {lr: 0.25}\n", "b.yaml")
    run = load_config(write(RUN.replace("model/small.yaml", "[model/small.yaml, a.yaml, b.yaml]")))
    assert (run.optim.lr, run.optim.eps, run.optim.warmup_steps) == (0.25, 1e-6, 1)


def test_null_removes_an_included_section_and_lists_are_replaced(write: Write) -> None:
    write(MODEL + "data: {sources: [x, y], seed: 3}\n", "model/small.yaml")
    run = load_config(write(RUN + "moe: null\n"))
    assert run.moe is None
    assert [source.path for source in run.data.sources] == ["data/tokens"]
    assert run.data.seed == 3


def test_mistakes_in_an_included_file_name_that_file(write: Write) -> None:
    write(MODEL.replace("head_dim: 4", "head_dim: 0"), "configs/model/small.yaml")
    assert _problems(write(RUN, "configs/run.yaml")) == [
        "configs/model/small.yaml:7: model.head_dim=0: must be greater than 0: raise it"
    ]


def test_an_included_file_cannot_include(write: Write) -> None:
    write("include: other.yaml\n" + MODEL, "model/small.yaml")
    assert _problems(write(RUN)) == [
        "model/small.yaml:1: include: an included file cannot include: list it in run.yaml instead"
    ]


def test_a_file_cannot_include_itself(write: Write) -> None:
    path = write(RUN.replace("model/small.yaml", "run.yaml"))
    assert "run.yaml:1: include: an included file cannot include: list it in run.yaml instead" in _problems(path)


def test_what_is_wrong_with_every_include_is_told_at_once(write: Write) -> None:
    write("a: [\n", "broken.yaml")
    write("- 1\n", "list.yaml")
    problems = _problems(write("name: x\ninclude: [gone.yaml, broken.yaml, list.yaml]\n"))
    assert problems[0] == "run.yaml:2: include: gone.yaml does not exist: check the path"
    assert problems[1].startswith("broken.yaml:2: not valid YAML")
    assert problems[2:] == ["list.yaml:1: a config must be a mapping: write `key: value` lines"]


@pytest.mark.parametrize("include", ["3", "[a.yaml, 3]", "{a: b}", "''", "[null]"])
def test_include_must_hold_paths(write: Write, include: str) -> None:
    write(MODEL, "a.yaml")
    problem = "run.yaml:1: include: must be a path or a list of paths: write include: [model/x.yaml]"
    assert problem in _problems(write(RUN.replace("model/small.yaml", include)))


def test_includes_are_bounded_in_number_and_in_sum(write: Write) -> None:
    write(MODEL, "model/small.yaml")
    many = _problems(write(RUN.replace("model/small.yaml", "[" + "model/small.yaml, " * 5 + "]")))
    assert many == ["run.yaml:1: include: at most 4 files can be included: merge some"]
    for name in "abc":
        write("".join(f"{name}{i}: 1\n" for i in range(2000)), f"{name}.yaml")
    [large] = _problems(write(RUN.replace("model/small.yaml", "[a.yaml, b.yaml, c.yaml]")))
    assert large == "run.yaml: more than 5000 values with its includes: give a config file"


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("optim.lr=3e-4", lambda run: run.optim.lr, 3e-4),
        ("moe=null", lambda run: run.moe, None),
        ("name=other", lambda run: run.name, "other"),
        ("name='12'", lambda run: run.name, "12"),
        ("moe.balance={z_coef: 0.5}", lambda run: (run.moe.balance.z_coef, run.moe.balance.aux_coef), (0.5, 0.0)),
        ("model.layer_types=[full_attention, full_attention]", lambda run: len(run.model.layer_types), 2),
        ("data.sources.0.weight=2", lambda run: [source.weight for source in run.data.sources], [2.0, 1.0]),
        ("data.sources=[a]", lambda run: [source.path for source in run.data.sources], ["a"]),
        ("parallel.dp=2", lambda run: run.parallel.dp, 2),
        ("observe.tensorboard=false", lambda run: run.observe.tensorboard, False),
        ("output_dir=a=b", lambda run: run.output_dir, "a=b"),
    ],
)
def test_overrides_win(write: Write, valid: str, override: str, read: Callable, value: object) -> None:
    path = write(valid.replace("sources: data/tokens", "sources: [{path: a}, b]"))
    assert read(load_config(path, [override])) == value


def test_the_last_override_wins(write: Write, valid: str) -> None:
    assert load_config(write(valid), ["optim.lr=0.5", "optim.lr=0.25"]).optim.lr == 0.25


def test_an_override_opens_a_null_section(write: Write, valid: str) -> None:
    run = load_config(write(valid), ["moe=null", "moe.num_experts=4", "moe.num_experts_per_tok=1"])
    assert run.moe is not None and run.moe.num_experts == 4


def test_an_override_leaves_other_uses_of_an_anchor_alone(write: Write, valid: str) -> None:
    path = write(valid.replace("sources: data/tokens", "sources: [&a {path: x}, *a]"))
    run = load_config(path, ["data.sources.0.weight=5"])
    assert [source.weight for source in run.data.sources] == [5.0, 1.0]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("optim.lr", "an override must be key=value: write it as optim.lr=3e-4"),
        ("=3", "an override must be key=value: write it as optim.lr=3e-4"),
        ("optim..lr=3", "an override must be key=value: write it as optim.lr=3e-4"),
        (".".join("a" * 70) + "=3", "an override must be key=value: write it as optim.lr=3e-4"),
        ("name=", "there is no value: write null for none, or '\"\"' for an empty text"),
        ("train.steps.x=3", "train.steps is 10, it has no key x: set train.steps as a whole"),
        ("data.sources.0=x", "data.sources is data/tokens, it has no key 0: set data.sources as a whole"),
        ("name=*x", "alias *x has no anchor before it: quote the value, or add the anchor"),
        ("optim.lrr=3", "unknown key; did you mean optim.lr?"),
        ("optim.lr=-1", "must be greater than 0: raise it"),
        ("name={a: 1, a: 2}", "duplicate key a: it stands at override name={a: 1, a: 2} already; keep one"),
    ],
)
def test_a_wrong_override_is_named(write: Write, valid: str, override: str, problem: str) -> None:
    shown = override if len(override) <= 80 else override[:77] + "..."
    assert f"override {shown}: {problem}" in _problems(write(valid), override)


def test_an_index_beyond_the_list_is_named(write: Write, valid: str) -> None:
    path = write(valid.replace("sources: data/tokens", "sources: [a, b]"))
    for index in ("2", "-1", "x", "9" * 30):
        [problem] = _problems(path, f"data.sources.{index}=c")
        assert "data.sources is a list of 2, it has no entry" in problem
        assert problem.endswith("use an index from 0 to 1, or set data.sources=[...]")


def test_a_syntax_error_in_an_override_advises_quotes(write: Write, valid: str) -> None:
    [problem] = _problems(write(valid), "name=[a")
    assert problem.startswith("override name=[a: not valid YAML: ") and problem.endswith("put the value in quotes")


def test_a_section_loads_from_overrides_alone() -> None:
    assert load_section(PrepareConfig) == PrepareConfig()
    assert load_section(PrepareConfig, ["vocab_size=1_000", "text_key=body"]).vocab_size == 1000
    with pytest.raises(ConfigError) as info:
        load_section(PrepareConfig, ["vocabsize=9", "workers=-1", "format"])
    assert info.value.problems == [
        "override format: an override must be key=value: write it as optim.lr=3e-4",
        "override workers=-1: must be at least 0: raise it",
        "override vocabsize=9: unknown key; did you mean vocab_size?",
    ]


def test_unreadable_files_are_told_apart(write: Write, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    write(b"name: \xff\xfe\n", "latin.yaml")
    write("a: 1\n" + "#" * 10**6, "large.yaml")
    write("", "empty.yaml")
    write("just text\n", "text.yaml")
    for path, problem in {
        "gone.yaml": "gone.yaml does not exist: check the path",
        ".": ". is a directory: give the path of a file",
        "pipe": "pipe is not a regular file: give the path of a file",
        "latin.yaml": "latin.yaml:1: byte 0xff is not UTF-8: save the file as UTF-8",
        "large.yaml": "large.yaml is larger than 1000000 bytes: give the file that belongs here",
        "nul\0": "'nul\\x00' is no path: check the path",
        "empty.yaml": "empty.yaml: the file is empty: start from a preset under configs/",
        "text.yaml": "text.yaml:1: a config must be a mapping: write `key: value` lines",
    }.items():
        with pytest.raises(UserError) as info:
            load_config(path)
        assert str(info.value).removeprefix("1 error in the config\n  ") == problem


def test_a_name_too_long_for_the_system_is_a_user_error() -> None:
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        load_config("a" * 5000)


def test_utf16_is_named_as_not_utf8(write: Write, valid: str) -> None:
    with pytest.raises(UserError, match="is not UTF-8: save the file as UTF-8"):
        load_config(write(valid.encode("utf-16")))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("moe=null", "name='1e5'", "output_dir='no: # way'"),
        ("model.layer_types=[sliding_attention, full_attention]", "parallel.dp=2", "optim.lr=1e-7"),
        ("data.sources=[{path: a, weight: 0.1}, 'null']", "model.rope_scaling=null", "launch.timeout=90min"),
    ],
)
def test_dump_loads_back_equal(write: Write, valid: str, overrides: tuple[str, ...]) -> None:
    run = load_config(write(valid), overrides)
    text = dump_config(run)
    assert load_config(write(text, "again.yaml")) == run
    assert dump_config(load_config("again.yaml")) == text


def test_dump_has_the_order_of_the_classes(write: Write, valid: str) -> None:
    run = load_config(write(valid))
    tops = [line.split(":")[0] for line in dump_config(run).splitlines() if line[:1].strip()]
    assert tops == list(type(run).model_fields)
