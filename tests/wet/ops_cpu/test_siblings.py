"""The pack as the model sees it equals the reference ops: outputs and gradients."""

import numpy as np
import pytest

from mindmoe.model.config import ModelConfig
from mindmoe.moe.config import MoeConfig
from mindmoe.ops.cpu.opset import cpu_ops
from mindmoe.ops.select import OpShape, reference_ops

B, S, D, H, KV, HD, E, K, F, V = 2, 70, 48, 4, 2, 12, 5, 2, 40, 300
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}


@pytest.fixture(params=["fp32", "bf16"])
def shape(request: pytest.FixtureRequest) -> OpShape:
    model = ModelConfig(vocab_size=V, hidden_size=D, num_hidden_layers=1, num_attention_heads=H, head_dim=HD,
                        num_key_value_heads=KV, intermediate_size=F)  # fmt: skip
    moe = MoeConfig(num_experts=E, num_experts_per_tok=K)
    return OpShape(model=model, moe=moe, seq_length=S, precision=request.param, documents=True)


def call(ops, name, window):
    return ops.attention(window) if name == "attention" else getattr(ops, name)


def inputs(name, rng):
    """Inputs of an op, the shape of its output, and the inputs with a gradient."""

    def normal(*dims):
        return rng.standard_normal(dims)

    match name:
        case "embedding":
            return [rng.integers(0, V, (B, S)), normal(V, D)], (B, S, D), (1,)
        case "linear":
            return [normal(B, S, D), normal(F, D), normal(F)], (B, S, F), (0, 1, 2)
        case "linear_out":
            return [normal(B, S, F), normal(D, F), normal(D), normal(B, S, D)], (B, S, D), (0, 1, 2, 3)
        case "rms_norm":
            return [normal(B, S, D), normal(D)], (B, S, D), (0, 1)
        case "attention":
            segments = np.sort(rng.integers(0, 3, (B, S)))
            qkv = [normal(B, S, heads * HD) for heads in (H, KV, KV)]
            return [*qkv, normal(H), segments], (B, S, H * HD), (0, 1, 2, 3)
        case "expert_ffn":
            ids = rng.integers(0, E + 1, (B * S, K))
            weights = [normal(E, D, 2 * F) / 8, normal(E, 2 * F), normal(E, F, D), normal(E, D)]
            return [normal(B * S, D), rng.random((B * S, K)), ids, *weights], (B * S, D), (0, 1, 3, 4, 5, 6)
    return [normal(B, S, D), normal(V, D) / 7, rng.integers(0, V, (B, S)), rng.random((B, S))], (), (0, 1)


OPS = ["embedding", "linear", "linear_out", "rms_norm", "attention", "expert_ffn", "cross_entropy"]


@pytest.mark.parametrize("jit", [True, False], ids=["graph", "pynative"])
@pytest.mark.parametrize("name", OPS)
def test_equal(two, shape, rng, name, jit):
    arrays, out, wrt = inputs(name, rng)
    window = 20
    pair = [call(ops, name, window) for ops in (reference_ops(shape), cpu_ops(shape, 2))]
    two(pair, arrays, rng.standard_normal(out), wrt, jit, TOLERANCE[shape.precision])
