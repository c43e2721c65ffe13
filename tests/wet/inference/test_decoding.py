"""Generation with a cache against the whole sequence at once."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindmoe.inference.decoding import Generation
from mindmoe.models.decoder import CausalLM
from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.moe.config import MoeConfig
from mindmoe.ops.contract import OpShape
from mindmoe.ops.select import select_ops

LENGTH, VOCAB = 40, 50


def build(kernels, precision, moe=True, **router):
    model = ModelConfig(vocab_size=VOCAB, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, head_dim=8,
                        num_key_value_heads=2, intermediate_size=16, sliding_window=5,
                        initializer_range=0.3)  # fmt: skip
    mixture = None
    if moe:
        mixture = MoeConfig(num_experts=6, num_experts_per_tok=2, num_shared_experts=1, **router)
    shape = OpShape(model=model, moe=mixture, seq_length=LENGTH, precision=precision)
    return CausalLM(model, mixture, select_ops(shape, device="cpu", kernels=kernels, threads=2))


@pytest.mark.parametrize("graph", [True, False], ids=["graph", "pynative"])
@pytest.mark.parametrize(("kernels", "precision", "tolerance"), [("reference", "fp32", 1e-5), ("cpu", "fp32", 1e-5),
                                                                 ("cpu", "bf16", 3e-2)])  # fmt: skip
@pytest.mark.parametrize("moe", [True, False], ids=["moe", "dense"])
def test_logits_are_those_of_the_whole_sequence(kernels, precision, tolerance, graph, moe):
    net = build(kernels, precision, moe)
    ids = np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH)).astype(np.int32)
    whole = net.logits(Tensor(ids), Tensor(np.zeros_like(ids))).asnumpy()
    generation = Generation(net, LENGTH, batch=2, chunk=8, graph=graph)
    at = 0
    for count in (19, 1, 1, 3, 14, 2):  # whole chunks, a filled-up one, single tokens, and no room for a chunk
        logits = generation.extend(ids[:, at : at + count])
        at += count
        np.testing.assert_allclose(logits, whole[:, at - 1], atol=tolerance * np.abs(whole).max())
    assert at == LENGTH == generation.length
    generation.restart()
    np.testing.assert_allclose(generation.extend(ids[:, :19]), whole[:, 18], atol=tolerance * np.abs(whole).max())


def test_more_than_the_capacity_is_our_bug():
    generation = Generation(build("cpu", "fp32"), 4, chunk=2, graph=False)
    with pytest.raises(AssertionError):
        generation.extend(np.zeros((1, 5), np.int32))


@pytest.mark.parametrize("graph", [True, False], ids=["graph", "pynative"])
def test_dynamic_routing_reads_its_table_and_thresholds_token_by_token(graph):
    budget = {"k_min": 1, "k_max": 4, "slot_slack": None}
    features = {"alpha": 1.0, "difficulty_head": True, "grad_ema": True, "bigram": True, "buckets": 512}
    net = build("cpu", "fp32", router={"type": "dmr", "budget": budget, "features": features})
    rng = np.random.default_rng(1)
    for tensor in net.tensors:
        name, shape = tensor.spec.name, tensor.box.shape
        if name.endswith("_table"):
            known = np.arange(shape[0]) % 2
            tensor.param.set_data(Tensor(np.stack([rng.standard_normal(shape[0]), known], 1), ms.float32))
        elif name.endswith("control"):
            tensor.param.set_data(Tensor([1.0, -0.3, *[0.0] * (shape[0] - 2)], ms.float32))
        elif "difficulty" in name:
            tensor.param.set_data(Tensor(0.5 * rng.standard_normal(shape), ms.float32))
    ids = rng.integers(0, VOCAB, (2, LENGTH)).astype(np.int32)
    whole = net.logits(Tensor(ids), Tensor(np.zeros_like(ids))).asnumpy()
    k = (net.hidden(Tensor(ids), Tensor(np.zeros_like(ids)))[1]["ids"].asnumpy() < 6).sum(-1)
    assert set(np.unique(k)) == {1, 2, 3, 4}
    generation, at = Generation(net, LENGTH, batch=2, chunk=8, graph=graph), 0
    for count in (19, 1, 3):
        logits = generation.extend(ids[:, at : at + count])
        at += count
        np.testing.assert_allclose(logits, whole[:, at - 1], atol=1e-5 * np.abs(whole).max())
