"""The wait that sleeps."""

import time

import mindspore as ms
import numpy as np

from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.ops.contract import OpShape
from mindmoe.ops.cpu.linear import Linear
from mindmoe.ops.cpu.pack import load
from mindmoe.ops.cpu.progress import Arrive, build_wait

MODEL = ModelConfig(
    vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=8,
    intermediate_size=8,
)  # fmt: skip
SHAPE = OpShape(model=MODEL, moe=None, seq_length=8, precision="fp32", documents=False)


def test_wait_ends_with_the_op_and_costs_no_processor_time(rng):
    pack = load()
    arrive, linear, wait = Arrive(pack), Linear(pack=pack), build_wait(SHAPE, pack)
    w = ms.Tensor(rng.standard_normal((1500, 1500)).astype(np.float32))

    @ms.jit
    def long(x):
        for _ in range(6):
            x = linear(x, w) * 1e-3
        return arrive(x)

    long(w).asnumpy()
    assert wait()
    began = time.thread_time()
    y = long(w)
    assert wait()
    asleep = time.thread_time() - began
    value = y.asnumpy()
    assert np.isfinite(value).all() and np.array_equal(value, long(w).asnumpy())
    assert wait()
    assert asleep < 0.1  # the products alone take several times as long


def test_wait_gives_up_when_nothing_runs():
    wait = build_wait(SHAPE, load())
    began = time.perf_counter()
    assert not wait()
    assert time.perf_counter() - began > 0.2
