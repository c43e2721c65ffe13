"""Parameters and FLOPs of published networks, and our own network read from its table of parameters."""

import pytest

from mindmoe.config.load import load_config
from mindmoe.host.errors import UserError
from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.models.gpt_oss.parameters import flops_per_token, layer_specs, param_specs
from mindmoe.moe.config import MoeConfig
from mindmoe.parallel.mesh import Mesh
from mindmoe.parallel.sharding import Placement
from mindmoe.plan.architecture import from_config, reference

GPT_OSS = ModelConfig(
    vocab_size=201088,
    hidden_size=2880,
    num_hidden_layers=36,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=64,
    intermediate_size=2880,
)
SMALL = ModelConfig(
    vocab_size=512,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=96,
)


@pytest.mark.parametrize(
    ("name", "seq_length", "gflops"),
    [
        ("gpt-oss-120b", 4096, 32.72),
        ("gpt-oss-120b", 8192, 34.53),
        ("deepseek-v3", 4096, 250.4),
        ("qwen3-30b-a3b", 4096, 23.08),
        ("qwen3-235b-a22b", 4096, 148.3),
        ("mixtral-8x22b", 4096, 242.2),
        ("bytedance-352b", 8192, 219.1),
        ("pangu-ultra-moe", 4096, 266.0),
    ],
)
def test_flops_are_the_published_ones(name, seq_length, gflops):
    """Hand counts that agree with the TFLOP/s that the runs printed; 0.1% for their rounding."""
    assert reference(name).flops_per_token(seq_length) / 1e9 == pytest.approx(gflops, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("gpt-oss-120b", 116_829_156_672, 5_132_849_472),
        ("gpt-oss-20b", 20_914_757_184, 3_608e6),
        ("deepseek-v3", 671e9, 36.6e9),
        ("qwen3-30b-a3b", 30.5e9, 3.04e9),
        ("qwen3-235b-a22b", 235e9, 21.6e9),
        ("mixtral-8x7b", 46.7e9, 12.75e9),
        ("qwen2-57b-a14b", 57.4e9, 13.7e9),
        ("deepseek-v2", 235.7e9, 20.85e9),
        ("kimi-k2", 1026e9, 31.7e9),
    ],
)
def test_parameters_are_the_published_ones(name, total, active):
    architecture = reference(name)
    exact = name == "gpt-oss-120b"
    assert architecture.total_params == pytest.approx(total, rel=0 if exact else 2e-3, abs=0)
    assert architecture.active_params == pytest.approx(active, rel=0 if exact else 2e-3, abs=0)


@pytest.mark.parametrize(
    ("model", "moe"),
    [
        (GPT_OSS, MoeConfig(num_experts=128, num_experts_per_tok=4)),
        (SMALL, MoeConfig(num_experts=8, num_experts_per_tok=2, num_shared_experts=1)),
        (SMALL.model_copy(update={"tie_word_embeddings": True}), None),
    ],
)
def test_a_run_is_counted_as_its_table_of_parameters(model, moe):
    """Active are those that one token uses: the LM head is counted, the input embedding is not."""
    architecture, specs = from_config("run", model, moe), param_specs(model, moe).values()
    total = sum(spec.size for spec in specs)
    idle = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    if moe is not None:
        experts = sum(spec.size for spec in specs if spec.axes[0] == "expert")
        idle += experts * (moe.num_experts - moe.num_experts_per_tok) // moe.num_experts
    assert (architecture.total_params, architecture.active_params) == (total, total - idle)
    assert architecture.flops_per_token(1024) == pytest.approx(flops_per_token(model, moe, 1024), rel=1e-12)


def test_a_run_is_counted_as_by_hand():
    moe = MoeConfig(num_experts=6, num_experts_per_tok=2)
    architecture = from_config("run", SMALL.model_copy(update={"num_hidden_layers": 2}), moe)
    attention = (64 * 64 + 64) + 2 * (64 * 32 + 32) + (64 * 64 + 64) + 4
    expert = 64 * 192 + 192 + 96 * 64 + 64
    layer = 2 * 64 + attention + (6 * 64 + 6) + 6 * expert
    assert architecture.total_params == 2 * 512 * 64 + 64 + 2 * layer
    assert architecture.active_params == architecture.total_params - 512 * 64 - 2 * 4 * expert


@pytest.mark.parametrize("preset", ["gpt-oss-120b", "gpt-oss-20b"])
def test_presets_have_the_published_parameters(root, preset):
    run = load_config(root / "configs" / f"{preset}.yaml")
    published = {"gpt-oss-120b": (116_829_156_672, 5_132_849_472), "gpt-oss-20b": (20_914_757_184, 3_608_307_264)}
    architecture = from_config(preset, run.model, run.moe)
    assert (architecture.total_params, architecture.active_params) == published[preset]


def test_the_run_and_the_reference_agree_on_gpt_oss():
    run = from_config("run", GPT_OSS, MoeConfig(num_experts=128, num_experts_per_tok=4))
    known = reference("gpt-oss-120b")
    assert run.total_params == known.total_params
    assert [layer.window for layer in run.layers] == [layer.window for layer in known.layers]


def test_an_unknown_network_names_those_on_file():
    with pytest.raises(UserError, match=r"'gpt-5' is not on file.*gpt-oss-120b"):
        reference("gpt-5")


@pytest.mark.parametrize("tp", [1, 8, 32])
def test_ranks_that_share_a_key_head_hold_it_whole(tp):
    """Against the boxes of the table of parameters; biases of shared heads are left out, which is below 1e-3."""
    moe, mesh = MoeConfig(num_experts=128, num_experts_per_tok=4), Mesh(tp=tp)
    held = [Placement.of(spec, mesh, 0).box.size for spec in layer_specs(GPT_OSS, moe, 0) if spec.axes[0] != "expert"]
    layer = from_config("run", GPT_OSS, moe).layers[0]
    assert layer.local_params(tp) == pytest.approx(sum(held), rel=1e-3)
    assert layer.local_kv_width(tp) == 2 * 64 * max(1, 8 / tp)
