"""Bytes of a rank: published and hand-counted values, and the order of the policies."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mindmoe.config.load import load_config
from mindmoe.plan.architecture import from_config, reference
from mindmoe.plan.auto import workload_of
from mindmoe.plan.hardware import load_hardware
from mindmoe.plan.layout import RECOMPUTES, ZEROS, Layout
from mindmoe.plan.memory import activation_bytes, dispatch_buffers, in_flight, on_cpu, state_bytes
from mindmoe.plan.routing import imbalance
from mindmoe.plan.step import CostModel, Workload

ROOT = Path(__file__).resolve().parents[3]
GPT_OSS = CostModel(
    load_hardware("ascend-910b2"),
    Workload(architecture=reference("gpt-oss-120b"), seq_length=4096, global_batch_size=1024),
)
PP4_EP8 = Layout(dp=128, pp=4, ep=8)


@pytest.mark.parametrize(("pp", "ep", "gib"), [(4, 8, 25.6), (8, 8, 14.1), (2, 8, 48.6), (4, 16, 15.5), (1, 64, 24.5)])
def test_static_memory_of_gpt_oss_on_512_cards(pp, ep, gib):
    """Hand count: bf16 weight 2 + fp32 gradient 4 + 12/replicas, layers split evenly, embeddings averaged."""
    architecture, replicas = reference("gpt-oss-120b"), 512 // pp
    expert = 36 * architecture.layers[0].params_expert
    dense = architecture.total_params - expert
    total = sum(map(np.sum, (state[:, 1] for state in state_bytes(np.array([[dense / pp]]), replicas))))
    total += sum(map(np.sum, (s[:, 1] for s in state_bytes(np.array([[expert / pp / ep]]), replicas // ep))))
    assert total / 2**30 == pytest.approx(gib, rel=0.01)


def test_states_of_the_planner_are_the_sum_over_its_stages():
    """All ranks of zero 0 together hold the replicas of every parameter: 18 bytes times parameters times copies."""
    terms = GPT_OSS._memory_terms([PP4_EP8], "balanced")
    held = sum(float((terms[name][0, 0, 0] * 128).sum()) for name in ("weights", "gradients", "optimizer"))
    architecture = reference("gpt-oss-120b")
    expert = 36 * architecture.layers[0].params_expert
    dense = architecture.total_params - expert - architecture.hidden_size  # the last norm is not counted
    assert held == pytest.approx(18.0 * (128 * dense + 16 * expert), rel=1e-9)


def test_zero_stages_divide_one_state_after_the_other():
    params = np.array([[1000.0]])
    weights, gradients, optimizer = (state[0, :, 0, 0] for state in state_bytes(params, 10))
    assert weights.tolist() == [2000, 2000, 2000, 200]
    assert gradients.tolist() == [4000, 4000, 400, 400]
    assert optimizer.tolist() == [12000, 1200, 1200, 1200]


def test_more_sharding_and_more_recomputation_need_less():
    for fewer, more in zip(RECOMPUTES, RECOMPUTES[1:], strict=False):
        for zero in ZEROS:
            layout = replace(PP4_EP8, zero=zero)
            assert (
                GPT_OSS.memory(replace(layout, recompute=more))[0].total
                < GPT_OSS.memory(replace(layout, recompute=fewer))[0].total
            )
    states = [GPT_OSS.memory(replace(PP4_EP8, zero=zero))[0] for zero in ZEROS]
    assert [s.weights + s.gradients + s.optimizer for s in states] == sorted(
        (s.weights + s.gradients + s.optimizer for s in states), reverse=True
    )


def test_imbalance_grows_with_the_percentile_and_ends_at_its_bound():
    values = [imbalance(128, 4, 8, percentile) for percentile in ("balanced", "p50", "p99", "worst")]
    assert values == sorted(values)
    assert values[0] == 1.0
    assert values[-1] == 8.0  # each of 8 ranks could get all 4 copies of every token: 8 * 4 / 4
    assert imbalance(128, 4, 128, "worst") == 32.0  # one expert a rank: at most one copy of every token
    assert imbalance(128, 4, 1, "p99") == imbalance(0, 0, 4, "p99") == 1.0
    memories = [GPT_OSS.memory(PP4_EP8, percentile)[0].total for percentile in ("balanced", "p50", "p99", "worst")]
    assert memories == sorted(memories)


def test_imbalance_is_the_quantile_of_the_busiest_rank():
    """Against the definition, simulated: the mean of independent normal expert loads on each of 16 ranks."""
    loads = np.random.default_rng(0).normal(1.0, 0.02 * 128**0.6, size=(20000, 16, 8)).mean(axis=2).max(axis=1)
    assert imbalance(128, 4, 16, "p50") == pytest.approx(np.quantile(loads, 0.5), abs=0.005)
    assert imbalance(128, 4, 16, "p99") == pytest.approx(np.quantile(loads, 0.99), abs=0.01)


def test_a_capacity_factor_bounds_the_imbalance():
    workload = replace(GPT_OSS.workload, max_imbalance=1.1)
    assert workload.imbalance(8, "worst") == 1.1


ROUTERS = {
    "static": {"type": "static"},
    "bounded": {"type": "dmr", "budget": {"k_max": 8, "slot_slack": 0.1}},
    "unbounded": {"type": "dmr", "budget": {"k_max": 8, "slot_slack": None}},
    "top_p": {"type": "top_p", "p": 0.5, "k_max": 8},
    "expert_choice": {"type": "expert_choice", "k_max": 8},
}


@pytest.mark.parametrize(
    ("router", "exchanged", "everywhere"),
    [
        ("static", 4, 4),
        ("bounded", 4.4, 8),
        ("unbounded", 8, 8),
        ("top_p", 8, 8),
        ("expert_choice", 4, 8),
    ],
)
def test_rows_of_routers_that_choose_k_are_held(router, exchanged, everywhere):
    """All-to-all moves the slots in use, at most as many as the router's bound; static shapes have room for k_max."""
    run = load_config(ROOT / "configs" / "gpt-oss-120b.yaml")
    moe = run.moe.model_validate(run.moe.model_dump() | {"router": ROUTERS[router]})
    architecture, plain = (from_config("gpt-oss", run.model, each) for each in (moe, run.moe))
    layer, tokens, width = architecture.kinds[0], 4096, 2880
    for dispatcher, ep, rows in (
        ("all_to_all", 8, exchanged),
        ("all_gather", 8, everywhere),
        ("all_to_all", 1, everywhere),
    ):
        layout = Layout(dp=8, ep=ep, dispatcher=dispatcher)
        kept, other = (
            activation_bytes(of, of.kinds[0], layout, "selective", tokens, 1.25) for of in (architecture, plain)
        )
        assert kept - other == pytest.approx(2 * tokens * (rows - 4) * 1.25 * (width + 2 * layer.expert_ffn))
        got = dispatch_buffers(architecture, layout, tokens, 1.25)
        received = ep if dispatcher == "all_gather" else 1.25 * exchanged
        assert got == pytest.approx(0 if ep == 1 else 2 * width * tokens * (everywhere + received))


def test_activations_in_flight_come_from_the_schedule():
    assert in_flight("1f1b", 4, 64, 1) == (4, 3, 2, 1)
    assert in_flight("gpipe", 2, 64, 1) == (64, 64)
    assert in_flight("interleaved", 4, 64, 2) == (11, 9, 7, 5)
    assert max(in_flight("zb_h1", 4, 64, 1)) == 4


def test_published_peak_memory_of_qwen3_30b():
    """62.17 GiB on 16 H100, ep 16, micro-batch 1 (Megatron-Bridge); selective recomputation assumed; 10%."""
    model = CostModel(
        load_hardware("h100"),
        Workload(
            architecture=reference("qwen3-30b-a3b"), seq_length=4096, global_batch_size=1024, routing_memory="balanced"
        ),
    )
    memory, _ = model.memory(Layout(dp=16, ep=16, recompute="selective"))
    assert memory.total / 2**30 == pytest.approx(62.17, rel=0.1)


def test_a_micro_batch_s_gradients_take_the_place_of_its_activations():
    """mindmoe holds their sum besides; where they outgrow the activations, those count no more."""
    run = load_config(ROOT / "configs" / "gpt-oss-20b.yaml")
    model = CostModel(load_hardware("ascend-910b2"), workload_of(run))
    kept, spared = (model.memory(Layout(dp=8, ep=8, zero=0, recompute=how))[0] for how in ("none", "full"))
    assert kept.gradients == kept.weights == spared.weights < spared.gradients
    assert spared.gradients + spared.activations + spared.working == pytest.approx(2 * spared.weights)


def test_the_pack_keeps_what_was_counted_op_by_op():
    """One layer of gpt-oss-20b in fp32 on two tensor ranks with whole experts on each of two expert ranks, by hand."""
    run = load_config(ROOT / "configs" / "gpt-oss-20b.yaml")
    architecture, tokens, rows = workload_of(run).architecture, 4096, 2048
    kept = activation_bytes(
        architecture, architecture.kinds[0], Layout(tp=2, ep=2, etp=1), "none", tokens, 1.0, on_cpu("fp32")
    )
    hidden = 3 * rows * 2880 + 2 * rows * 2880 + 3 * tokens * 2880  # inputs, norms, and the gathered sequence
    attention = tokens * 64 * (2 * 64 + 2 * 8) // 2 + rows * 64  # queries, keys, values, output; sums of the scores
    experts = 3 * rows * 32 + rows * 4 * (2 * 2880 + 5 * 2880)  # router; gate and up, and rows on their way
    assert kept == 4 * (hidden + attention + experts)
    assert activation_bytes(architecture, architecture.kinds[0], Layout(), "full", tokens, 1.0, on_cpu("bf16")) == (
        4 * tokens * 2880
    )
