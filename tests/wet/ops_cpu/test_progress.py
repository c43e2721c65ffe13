"""The wait that sleeps."""

import time

import mindspore as ms
import numpy as np

from mindmoe.ops.cpu.linear import Linear
from mindmoe.ops.cpu.pack import load
from mindmoe.ops.cpu.progress import Arrive, build_wait


def test_wait_ends_with_the_op_and_costs_no_processor_time(rng):
    pack = load()
    arrive, linear, wait = Arrive(pack), Linear(pack=pack), build_wait(pack)
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
    wait = build_wait(load())
    began = time.perf_counter()
    assert not wait()
    assert time.perf_counter() - began > 0.2
