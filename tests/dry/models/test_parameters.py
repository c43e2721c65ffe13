"""Parameters and FLOPs from the dry table, against published figures and hand counts."""

import pytest

from mindmoe.config.load import load_config
from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.models.gpt_oss.parameters import flops_per_token, layer_flops, param_specs, recomputed_flops, utilization
from mindmoe.moe.config import BalanceConfig, MoeConfig
from mindmoe.moe.router.topk import TopK
from mindmoe.parallel.config import ParallelConfig


def tiny(**changes: object) -> ModelConfig:
    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 12,
    }
    return ModelConfig(**{**sizes, **changes})


def test_optional_parameters_follow_the_config():
    bare = param_specs(tiny(attention_bias=False, attention_sinks=False), None)
    assert not [name for name in bare if name.endswith(("sinks", "q_proj.bias"))]
    moe = MoeConfig(
        num_experts=6,
        num_experts_per_tok=2,
        num_shared_experts=1,
        router=TopK(linear_bias=False),
        balance=BalanceConfig(bias_rate=1e-3),
    )
    specs = param_specs(tiny(), moe)
    assert "model.layers.0.mlp.router.bias" not in specs
    assert "model.layers.0.mlp.shared_experts.down_proj.weight" in specs
    assert not specs["model.layers.0.mlp.router.selection_bias"].trainable


def test_decay_applies_to_matrices_only():
    specs = param_specs(tiny(), MoeConfig(num_experts=6, num_experts_per_tok=2))
    decayed = {name for name, spec in specs.items() if spec.decay}
    assert not [name for name in decayed if "norm" in name or "bias" in name or "sinks" in name or "embed" in name]
    assert {
        "lm_head.weight",
        "model.layers.1.mlp.experts.down_proj",
        "model.layers.0.self_attn.o_proj.weight",
    } <= decayed


@pytest.mark.parametrize(("seq_length", "gflops"), [(4096, 32.72), (8192, 34.53)])
def test_flops_of_gpt_oss_120b(root, seq_length, gflops):
    run = load_config(root / "configs" / "gpt-oss-120b.yaml")
    assert flops_per_token(run.model, run.moe, seq_length) / 1e9 == pytest.approx(gflops, rel=1e-3)


ATTENTION = 2 * (2 * 32 * 16 + 2 * 16 * 16)  # q and o, k and v of tiny()
CONTEXTS = (3, 4)  # [tokens] mean over 8 in a layer of window 3, and in a full one
FFN = 2 * 3 * 16 * 12
HEAD = 2 * 50 * 16
FIRST, LAST = (ATTENTION + FFN + 4 * 32 * context for context in CONTEXTS)  # a layer each


@pytest.mark.parametrize(
    ("layout", "again"),
    [
        ({}, 0),
        ({"recompute": "selective"}, 2 * FFN),
        ({"recompute": "full"}, 2 * (ATTENTION + FFN) + 4 * 32 * sum(CONTEXTS)),
        ({"recompute": "full", "recompute_layers": 1}, ATTENTION + FFN + 4 * 32 * CONTEXTS[0]),
        ({"pp": 2}, FIRST),  # the last piece computes nothing twice
        ({"pp": 2, "zero": 3, "recompute": "selective", "recompute_layers": 1}, FIRST + 2 * FFN),
        # the pass for weights of either stage begins anew; on the last one the pass for its input did so too
        ({"pp": 2, "schedule": "zb_h1"}, FIRST + 2 * (LAST + HEAD)),
    ],
)
def test_what_is_computed_again_is_counted(layout, again):
    assert recomputed_flops(tiny(sliding_window=3), None, 8, ParallelConfig(**layout)) == again


@pytest.mark.parametrize(("over", "coefficient", "times"), [("exact", 0.1, 1), ("exact", 0.0, 0), ("running", 0.1, 0)])
def test_a_pass_that_counts_first_is_counted(over, coefficient, times):
    model = tiny(sliding_window=3)
    moe = MoeConfig(num_experts=6, num_experts_per_tok=2, balance=BalanceConfig(aux_coef=coefficient, aux_over=over))
    assert recomputed_flops(model, moe, 8, ParallelConfig()) == times * flops_per_token(model, moe, 8) / 3


def test_the_halves_of_layers_and_the_head_are_a_third_of_training():
    model, moe = tiny(sliding_window=3), MoeConfig(num_experts=6, num_experts_per_tok=2)
    layers = sum(sum(layer_flops(model, moe, 8, layer)) for layer in range(2))
    assert flops_per_token(model, moe, 8) == pytest.approx(3 * (layers + HEAD))


def test_shares_of_a_peak_are_not_cut():
    assert utilization(2e9, 300.0, 1e12) == pytest.approx(0.6)
    assert utilization(2e9, 1000.0, 1e12) == pytest.approx(2.0)
