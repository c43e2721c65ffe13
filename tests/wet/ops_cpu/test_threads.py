"""Results are bitwise equal for 1 to 8 threads: forward, backward, fp32 and bf16, at sizes of many tasks."""

import mindspore as ms
import numpy as np
import pytest

from mindmoe.host.errors import UserError
from mindmoe.ops.cpu.attention import Attention
from mindmoe.ops.cpu.cross_entropy import CrossEntropy
from mindmoe.ops.cpu.embedding import Embedding
from mindmoe.ops.cpu.experts import Experts
from mindmoe.ops.cpu.fork import Fork
from mindmoe.ops.cpu.linear import Linear
from mindmoe.ops.cpu.optimizer import SquareSum
from mindmoe.ops.cpu.pack import load
from mindmoe.ops.cpu.rms_norm import RmsNorm
from mindmoe.ops.cpu.router_statistics import RouterStatistics
from mindmoe.ops.cpu.routing import Route


def run(name, rng, precision, pack):
    """The op, its inputs, the shapes of its outputs, and the inputs with a gradient."""

    def normal(*shape):
        return rng.standard_normal(shape)

    match name:
        case "linear":
            inputs = [normal(700, 130), normal(300, 130), normal(300), normal(700, 300)]
            return Linear(precision, pack=pack), inputs, [(700, 300)], (0, 1, 2, 3)
        case "rms_norm":
            return RmsNorm(pack=pack), [normal(900, 70), normal(70)], [(900, 70)], (0, 1)
        case "attention":
            angle, segments = normal(600, 16), np.sort(rng.integers(0, 3, (2, 600)))
            qkv = [normal(2, 600, width) for width in (128, 64, 64)]
            inputs = [*qkv, np.cos(angle), np.sin(angle), normal(4), segments]
            return Attention(0.2, 300, precision, pack=pack), inputs, [(2, 600, 128)], (0, 1, 2, 5)
        case "experts":
            weights = [normal(*shape) for shape in ((6, 64, 96), (6, 96), (6, 48, 64), (6, 64))]
            inputs = [normal(2000, 64), normal(2000, 2), rng.integers(0, 7, (2000, 2)), *weights]
            return Experts(precision, pack=pack), inputs, [(2000, 64)], (0, 1, 3, 4, 5, 6)
        case "cross_entropy":
            inputs = [normal(600, 64), normal(3000, 64), rng.integers(0, 3000, 600), normal(600)]
            return CrossEntropy(precision, pack), inputs, [()], (0, 1)
        case "embedding":
            return Embedding(pack), [rng.integers(0, 900, 3000), normal(900, 40)], [(3000, 40)], (1,)
        case "router_statistics":
            sums = [(32,), (32,), (1,), (1,)]
            return RouterStatistics(pack=pack), [normal(3000, 32), rng.integers(0, 33, (3000, 4))], sums, (0,)
        case "fork":
            return Fork(3, pack), [normal(3000, 70)], [(3000, 70)] * 3, (0,)
    return Route(4, pack=pack), [normal(3000, 32), normal(32)], [(3000, 4), (3000, 4)], (0,)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["linear", "rms_norm", "attention", "experts", "cross_entropy", "embedding", "route",
                                  "router_statistics", "fork"])  # fmt: skip
def test_bitwise_equal(case, rng, name, precision):
    op, inputs, shapes, wrt = run(name, rng, precision, case.pack)
    douts = [rng.standard_normal(s) for s in shapes]
    before = case.pack.threads
    try:
        results = []
        for count in (1, 2, 3, 8):
            case.pack.set_threads(count)
            assert case.pack.threads == count
            results.append([x.tobytes() for part in case.run(op, inputs, douts, wrt) for x in part])
    finally:
        case.pack.set_threads(before)
    assert all(result == results[0] for result in results)


def test_square_sum_is_bitwise_equal(case, rng):
    op, before = SquareSum(case.pack), case.pack.threads
    tensors = tuple(ms.Tensor(rng.standard_normal(s).astype(np.float32)) for s in ((200000,), (77, 300)))
    try:
        totals = set()
        for count in (1, 2, 3, 8):
            case.pack.set_threads(count)
            totals.add(float(op(tensors)))
    finally:
        case.pack.set_threads(before)
    assert len(totals) == 1


def test_no_threads_are_refused():
    with pytest.raises(UserError, match="threads=0"):
        load().set_threads(0)
