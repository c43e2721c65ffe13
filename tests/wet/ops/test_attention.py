"""Attention against a loop over queries in float64."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindmoe.models.gpt_oss.config import ModelConfig, YarnConfig
from mindmoe.ops.contract import OpShape
from mindmoe.ops.reference.attention import build_attention
from mindmoe.ops.rope import rope_tables

B, S, H, KV, HD = 2, 11, 4, 2, 6


def bound(window: int, yarn: YarnConfig | None = None, documents: bool = False, precision: str = "fp32") -> tuple:
    """Attention, and the tables of its rotation."""
    model = ModelConfig(
        vocab_size=8,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=H,
        num_key_value_heads=KV,
        head_dim=HD,
        intermediate_size=8,
        rope_scaling=yarn,
    )
    shape = OpShape(model=model, moe=None, seq_length=S, precision=precision, documents=documents)
    return build_attention(shape)(window), *rope_tables(model, S)


def oracle(q, k, v, sinks, segments, window, cos, sin) -> np.ndarray:
    def rotate(x: np.ndarray) -> np.ndarray:  # (S, hd)
        a, b = x[:, : HD // 2], x[:, HD // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], 1)

    out = np.zeros((B, S, H * HD))
    for b in range(B):
        for h in range(H):
            kv = h // (H // KV)
            qh = rotate(q[b, :, h * HD : (h + 1) * HD])
            kh = rotate(k[b, :, kv * HD : (kv + 1) * HD])
            vh = v[b, :, kv * HD : (kv + 1) * HD]
            for i in range(S):
                visible = [
                    j for j in range(i + 1) if (not window or j > i - window) and segments[b, j] == segments[b, i]
                ]
                logits = np.array([qh[i] @ kh[j] / np.sqrt(HD) for j in visible])
                weights = np.exp(logits)
                total = weights.sum() + (np.exp(sinks[h]) if sinks is not None else 0.0)
                out[b, i, h * HD : (h + 1) * HD] = (weights / total) @ vh[visible]
    return out


@pytest.mark.parametrize("window", [0, 1, 4, S, 3 * S])
@pytest.mark.parametrize("with_sinks", [True, False])
@pytest.mark.parametrize("documents", [True, False])
def test_forward(window, with_sinks, documents):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((B, S, n * HD)) for n in (H, KV, KV))
    sinks = rng.standard_normal(H) if with_sinks else None
    segments = np.sort(rng.integers(0, 3, (B, S)), 1) if documents else np.zeros((B, S), int)
    attend, cos, sin = bound(window, YarnConfig(original_max_position_embeddings=4), documents)
    got = attend(
        *(Tensor(x, ms.float32) for x in (q, k, v)),
        None if sinks is None else Tensor(sinks, ms.float32),
        Tensor(segments, ms.int32),
    ).asnumpy()
    np.testing.assert_allclose(got, oracle(q, k, v, sinks, segments, window, cos, sin), atol=2e-6)


def test_tokens_see_only_their_past():
    rng = np.random.default_rng(1)
    attend, _, _ = bound(0)
    x = [rng.standard_normal((B, S, n * HD)).astype(np.float32) for n in (H, KV, KV)]
    segments, sinks = Tensor(np.zeros((B, S), np.int32)), Tensor(np.zeros(H, np.float32))
    before = attend(*map(Tensor, x), sinks, segments).asnumpy()
    for part in x:
        part[:, 7:] += 1.0
    after = attend(*map(Tensor, x), sinks, segments).asnumpy()
    np.testing.assert_array_equal(before[:, :7], after[:, :7])


def test_bf16_rounds_operands_only():
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((B, S, n * HD)) for n in (H, KV, KV))
    attend, cos, sin = bound(0, precision="bf16")
    segments = np.zeros((B, S), np.int32)
    got = attend(*(Tensor(x, ms.float32) for x in (q, k, v)), None, Tensor(segments)).asnumpy()
    error = np.abs(got - oracle(q, k, v, None, segments, 0, cos, sin)).max()
    assert 1e-5 < error < 3e-2  # bf16 has 8 bits of mantissa: relative 4e-3 per operand
