"""Weights made whole from the parts of a group, and the way of their gradients back."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from mindmoe.parallel.zero import Whole, ZeroBuffer

SHAPES = [(5,), (8, 3), (3, 8), (2, 3, 7), (4, 4)]  # padded, cut along the first and the last dimension, padded there


def given(ranks: int, shapes: list[tuple[int, ...]] = SHAPES) -> tuple[ZeroBuffer, Tensor, list[Tensor]]:
    """A buffer, rows for it, and a weight for every element of the whole tensors."""
    rng = np.random.default_rng(ranks)
    buffer = ZeroBuffer(shapes, ranks, 0)
    rows = Tensor(rng.standard_normal((ranks, sum(buffer.columns)), np.float32))
    return buffer, rows, [Tensor(rng.standard_normal(shape, np.float32)) for shape in shapes]


def weighted(whole, factors: list[Tensor], used: tuple[int, ...]):
    """A loss of rows that reads the whole tensors in places `used`."""

    def loss(rows: Tensor) -> Tensor:
        tensors, total = whole(rows), Tensor(0.0)
        for place in used:
            total = total + (tensors[place] * factors[place]).sum()
        return total

    return loss


@pytest.mark.parametrize("ranks", [2, 4, 7])
@pytest.mark.parametrize("used", [(0, 1, 2, 3, 4), (1,), (4, 0)])
def test_the_gradient_of_whole_tensors_is_that_of_mindspore(ranks, used):
    buffer, rows, factors = given(ranks)
    own = ms.grad(weighted(Whole(buffer), factors, used))(rows)
    assert np.array_equal(own.asnumpy(), ms.grad(weighted(buffer.whole, factors, used))(rows).asnumpy())


class Loss(nn.Cell):
    """The same in a cell."""

    def __init__(self, buffer: ZeroBuffer, factors: list[Tensor]):
        super().__init__()
        self.whole, self.factors = Whole(buffer), factors

    def construct(self, rows: Tensor) -> Tensor:
        """Reads the first and the last tensor, or the only one."""
        tensors = self.whole(rows)
        if len(self.factors) == 1:
            return (tensors * self.factors[0]).sum()
        return (tensors[0] * self.factors[0]).sum() + (tensors[-1] * self.factors[-1]).sum()


@pytest.mark.parametrize("shapes", [SHAPES, [(5, 3)], [(4, 3)]], ids=str)
def test_the_gradient_is_the_same_of_one_tensor(shapes):
    buffer, rows, factors = given(4, shapes)
    own = ms.grad(Loss(buffer, factors))(rows)
    wanted = ms.grad(weighted(buffer.whole, factors, tuple({0, len(shapes) - 1})))(rows)
    assert np.array_equal(own.asnumpy(), wanted.asnumpy())


def test_no_slice_is_differentiated(monkeypatch):
    """MindSpore's kernel for it refuses 2 GiB, and makes a buffer for every tensor."""
    buffer, rows, factors = given(4)
    called = []
    monkeypatch.setattr(buffer, "rows", lambda tensors: called.append(len(tensors)) or ZeroBuffer.rows(buffer, tensors))
    ms.grad(weighted(Whole(buffer), factors, (1, 3)))(rows)
    assert called == [len(SHAPES)]
