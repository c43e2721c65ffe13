"""Plans at the shapes we ship: UB budget, cores and workspace. That a plan states the UB a kernel really takes is
checked at every launch of the other tests (driver.h)."""

import numpy as np
import pytest
from host_model import KernelError

UB = 184 * 1024
GIB = 1 << 30
GPT_OSS_20B = {"experts": 32, "topk": 4, "hidden": 2880, "heads": 64, "kv_heads": 8, "head_dim": 64}
GPT_OSS_120B = GPT_OSS_20B | {"experts": 128}
DEEPSEEK_V3 = {"experts": 256, "topk": 8, "hidden": 7168, "heads": 128, "kv_heads": 128, "head_dim": 128}
MODELS = {"gpt-oss-20b": GPT_OSS_20B, "gpt-oss-120b": GPT_OSS_120B, "deepseek-v3": DEEPSEEK_V3}


def plan(driver, group, kernel, ints, reals=(1.0, 7.0), bf16=True, inputs=8, cores=48):
    """cores, UB bytes and workspace bytes; input pointers are null, so optional inputs are absent."""
    figures = np.zeros(3, np.uint64)
    driver(group)(f"plan {kernel}", [None] * inputs, [figures], ints, reals, bf16=bf16, cores=cores)
    return (int(x) for x in figures)


@pytest.mark.parametrize("cores", [40, 48])
@pytest.mark.parametrize("tokens", [1, 37, 8192, 1 << 20])
@pytest.mark.parametrize("name", MODELS)
def test_routing_plans_fit(driver, name, tokens, cores):
    m = MODELS[name]
    routing = [tokens, m["topk"], m["experts"], m["hidden"], 0]
    gating = [tokens, m["experts"], m["topk"], 0, 1, 1, 1]
    plans = [("gating", k, gating, b) for k in ("moe_gating", "moe_gating_grad") for b in (False, True)]
    plans += [("permute", k, routing, True) for k in ("moe_permute", "moe_combine", "moe_combine_grad")]
    plans += [("permute", "moe_capacity", [*routing[:4], 64], True)]
    plans += [("swiglu", k, [tokens * m["topk"] * 16], b) for k in ("swiglu", "swiglu_grad") for b in (False, True)]
    for group, kernel, ints, bf16 in plans:
        used, ub, workspace = plan(driver, group, kernel, ints, bf16=bf16, cores=cores)
        assert 1 <= used <= cores and 0 < ub <= UB and workspace < GIB, kernel


@pytest.mark.parametrize("seq", [1, 4096, 131072])
@pytest.mark.parametrize("name", MODELS)
def test_attention_plans_fit(driver, name, seq):
    m = MODELS[name]
    for kernel in ("attention", "attention_delta", "attention_grad_query", "attention_grad_key_value"):
        for bf16 in (False, True):
            used, ub, workspace = plan(
                driver, "attention", kernel, [1, m["heads"], m["kv_heads"], seq, m["head_dim"], 128], bf16=bf16
            )
            assert 1 <= used <= 48 and 0 < ub <= UB and workspace < GIB, kernel


def test_the_sink_epilogue_needs_sinks(driver):
    with pytest.raises(KernelError, match="needs sinks"):
        plan(driver, "attention", "attention_sink", [1, 1, 1, 8, 64, 0])
