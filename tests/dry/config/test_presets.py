"""The presets load, are what their comments say, and match the JSON Schema."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mindmoe.config.load import config_schema, dump_config, load_config
from mindmoe.config.run import RunConfig, resolve
from mindmoe.config.strict_yaml import parse, plain

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
RUNS = sorted(path.name for path in CONFIGS.glob("*.yaml"))
SHAPES = sorted(path.name for path in (CONFIGS / "model").glob("*.yaml"))


def _count(run: RunConfig, experts: int) -> int:
    """Weights of the model with that many experts a layer, by the closed form of the gpt-oss layer."""
    model, hidden, ffn = run.model, run.model.hidden_size, run.model.intermediate_size
    queries, keys = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    attention = (hidden + 1) * queries + 2 * (hidden + 1) * keys + (queries + 1) * hidden + model.num_attention_heads
    expert = (hidden + 1) * 2 * ffn + (ffn + 1) * hidden
    router = (hidden + 1) * run.moe.num_experts if run.moe else 0
    layer = attention + 2 * hidden + router + experts * expert
    return model.num_hidden_layers * layer + hidden + 2 * model.vocab_size * hidden


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("gpt-oss-120b", 116_829_156_672, 5_132_849_472),  # published: openai/gpt-oss
        ("gpt-oss-20b", 20_914_757_184, 3_608_307_264),
        ("moe-10b-a1b", 10_193_432_832, 993_620_224),
        ("quickstart", 4_558_048, 1_656_032),
    ],
)
def test_a_shape_has_the_weights_its_comment_states(name: str, total: int, active: int) -> None:
    run = load_config(CONFIGS / f"{name}.yaml")
    assert run.moe is not None
    embedding = run.model.vocab_size * run.model.hidden_size
    assert _count(run, run.moe.num_experts) == total
    assert _count(run, run.moe.num_experts_per_tok) - embedding == active
    comment = " ".join((CONFIGS / "model" / f"{name}.yaml").read_text().split())
    assert f"{total:,} weights in total" in comment and f"{active:,} active" in comment


def test_the_gpt_oss_shapes_are_exact() -> None:
    large, small = load_config(CONFIGS / "gpt-oss-120b.yaml"), load_config(CONFIGS / "gpt-oss-20b.yaml")
    expected = {
        "vocab_size": 201088,
        "hidden_size": 2880,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 2880,
        "max_position_embeddings": 131072,
        "rope_theta": 150000.0,
        "rope_scaling": {
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
        "sliding_window": 128,
        "layer_types": "alternating",
        "attention_bias": True,
        "attention_sinks": True,
        "rms_norm_eps": 1e-5,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
    }
    assert large.model.model_dump() == expected
    assert small.model.model_dump() == {**expected, "num_hidden_layers": 24}
    assert large.moe is not None and small.moe is not None
    assert (large.moe.num_experts, small.moe.num_experts) == (128, 32)
    for moe in (large.moe, small.moe):
        assert (moe.num_experts_per_tok, moe.num_shared_experts) == (4, 0)
        assert (moe.router.score, moe.router.linear_bias) == ("softmax_after_topk", True)
        assert (moe.balance.aux_coef, moe.dispatch.kind) == (0.001, "dropless")
    assert [large.model.window(layer) for layer in range(4)] == [128, 0, 128, 0]


@pytest.mark.parametrize(
    ("name", "cards", "dp"),
    [
        ("quickstart", 2, 2),
        ("dense-warmup", 2, 2),
        ("moe-10b-a1b", 32, 32),
        ("gpt-oss-20b", 64, 32),
        ("gpt-oss-120b", 512, 128),
    ],
)
def test_a_preset_fits_its_cards(name: str, cards: int, dp: int) -> None:
    assert resolve(load_config(CONFIGS / f"{name}.yaml"), cards).parallel.dp == dp


def test_the_dense_twin_differs_from_the_quick_start_in_its_ffn_alone() -> None:
    dense, sparse = load_config(CONFIGS / "dense-warmup.yaml"), load_config(CONFIGS / "quickstart.yaml")
    assert dense.moe is None and sparse.moe is not None
    assert dense.model.intermediate_size == sparse.moe.num_experts_per_tok * sparse.model.intermediate_size
    shared = dense.model.model_copy(update={"intermediate_size": sparse.model.intermediate_size})
    assert (
        dense.model_copy(update={"name": sparse.name, "moe": sparse.moe, "model": shared, "parallel": sparse.parallel})
        == sparse
    )


@pytest.mark.parametrize("name", RUNS)
def test_a_preset_is_named_after_its_file_and_survives_a_dump(name: str, tmp_path: Path) -> None:
    run = load_config(CONFIGS / name)
    assert f"{run.name}.yaml" == name
    (tmp_path / name).write_text(dump_config(run))
    assert load_config(tmp_path / name) == run


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_holds_model_and_moe_alone_and_yarn_spans_its_positions(name: str) -> None:
    root = parse((CONFIGS / "model" / name).read_text(), name).root
    assert root is not None
    data = plain(root)
    assert set(data) == {"model", "moe"}
    yarn = data["model"]["rope_scaling"]
    assert yarn["factor"] * yarn["original_max_position_embeddings"] == data["model"]["max_position_embeddings"]
    assert any(f"include: model/{name}" in (CONFIGS / run).read_text() for run in RUNS)


def _schema_errors(data: Any) -> list[str]:
    return [error.json_path for error in jsonschema.Draft202012Validator(config_schema()).iter_errors(data)]


def test_the_schema_is_a_draft_2020_12_schema_with_descriptions() -> None:
    schema = config_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema["properties"]) == {"include", *RunConfig.model_fields}
    assert all(section["description"] for section in (schema, *schema["$defs"].values()))


@pytest.mark.parametrize("name", [*RUNS, *(f"model/{name}" for name in SHAPES)])
def test_the_schema_accepts_the_presets_as_written_and_resolved(name: str) -> None:
    root = parse((CONFIGS / name).read_text(), name).root
    assert root is not None
    assert _schema_errors(plain(root)) == []
    if name in RUNS:
        assert _schema_errors(yaml.safe_load(dump_config(load_config(CONFIGS / name)))) == []


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        ({"include": ["a.yaml"]}, True),
        ({"data": {"sources": "a"}}, True),
        ({"data": {"sources": ["a", {"path": "b", "weight": 2}]}}, True),
        ({"checkpoint": {"min_free": "3GiB"}}, True),
        ({"launch": {"timeout": 3.5, "cluster_timeout": "3min"}}, True),
        ({"moe": None}, True),
        ({"include": 3}, False),
        ({"data": {"sources": 5}}, False),
        ({"data": {"sources": []}}, False),
        ({"data": {"sources": [{"pth": "b"}]}}, False),
        ({"checkpoint": {"min_free": True}}, False),
        ({"checkpoint": {"min_free": -1}}, False),
        ({"optim": {"lrr": 1}}, False),
        ({"train": {"steps": 0}}, False),
        ({"parallel": {"dp": "all"}}, False),
        ({"nme": "x"}, False),
    ],
)
def test_the_schema_accepts_what_the_loader_accepts(change: dict[str, Any], valid: bool) -> None:
    assert (_schema_errors(change) == []) is valid


def test_the_schema_is_built_anew_each_time() -> None:
    config_schema()["properties"].clear()
    assert "model" in config_schema()["properties"]
