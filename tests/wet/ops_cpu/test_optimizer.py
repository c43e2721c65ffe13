"""AdamW and the norm, inside a training step on real parameters."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindmoe.ops.cpu.optimizer import FusedAdamW, SquareSum

SHAPES = [(7, 33), (5,), (300, 250)]
DECAY = [True, False, True]


def adamw(p, m, v, g, step, decay, lr=0.01, beta1=0.9, beta2=0.95, eps=1e-8):
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    p = p * (1 - lr * decay) - lr * (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)
    return p, m, v


class Step(nn.Cell):
    """Three parameters under the loss sum(p^3) * x, gradients scaled to norm one."""

    def __init__(self, values, pack):
        super().__init__()
        self.params = ParameterTuple(
            [Parameter(Tensor(v.astype(np.float32)), name=f"p{i}") for i, v in enumerate(values)]
        )
        self.first, self.second = self.params.clone("m", "zeros"), self.params.clone("v", "zeros")
        self.adamw, self.square_sum = FusedAdamW(DECAY, weight_decay=0.1, pack=pack), SquareSum(pack)
        self.gradients = ms.value_and_grad(self.loss, None, self.params)

    def loss(self, x):
        total = 0.0
        for p in self.params:
            total = total + (p * p * p).sum() * x
        return total

    def construct(self, x, lr, step):
        loss, gradients = self.gradients(x)
        norm = ops.sqrt(self.square_sum(gradients))
        done = self.adamw(self.params, self.first, self.second, gradients, lr, 1.0 / norm, step)
        return loss, norm, done


def test_three_steps(case, rng):
    values = [rng.standard_normal(s) for s in SHAPES]
    cell = Step(values, case.pack)
    step = ms.jit(cell.construct) if case.jit else cell.construct
    state = [(v.astype(np.float32).astype(np.float64), 0, 0) for v in values]
    for number in (1, 2, 3):
        scalars = [Tensor(x, ms.float32) for x in (1.5, 0.01, float(number))]
        loss, norm, done = step(*scalars)
        gradients = [4.5 * p * p for p, _, _ in state]
        want = np.sqrt(sum((g * g).sum() for g in gradients))
        assert abs(float(norm) / want - 1) < 1e-6 and float(done) == number
        size = sum((abs(p) ** 3).sum() for p, _, _ in state)
        assert abs(float(loss) - 1.5 * sum((p**3).sum() for p, _, _ in state)) < 1e-5 * size
        state = [adamw(*s, g / want, number, 0.1 * d) for s, g, d in zip(state, gradients, DECAY, strict=True)]
    for got, want in zip(zip(cell.params, cell.first, cell.second, strict=True), state, strict=True):
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a.asnumpy(), b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 40])
def test_square_sum_of_many_tensors(case, rng, count):
    arrays = [rng.standard_normal(rng.integers(1, 5000)) for _ in range(count)]
    tensors = tuple(Tensor(a.astype(np.float32)) for a in arrays)
    op = SquareSum(case.pack)
    got = (ms.jit(op.construct) if case.jit else op)(tensors)
    want = sum((a.astype(np.float32).astype(np.float64) ** 2).sum() for a in arrays)
    assert abs(float(got) / want - 1) < 1e-6


def test_square_sum_of_large_values_keeps_its_precision(case):
    op = SquareSum(case.pack)
    got = float(op((Tensor(np.full(1 << 20, 1000.0, np.float32)), Tensor(np.ones(3, np.float32)))))
    assert got == np.float32(float(1 << 20) * 1e6 + 3)
