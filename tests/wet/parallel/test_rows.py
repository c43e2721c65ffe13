"""Rows between ranks: what must not be empty is filled with zeros, and numbers that do not fit are refused."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindmoe.parallel.collectives import AllToAllV
from mindmoe.parallel.groups import Group

PAIR = Group(axis="ep", name="", ranks=(0, 1), index=0, stand_in=True)


def test_rows_that_stay_and_zeros_behind_those_that_arrive():
    x = Tensor(np.arange(10, dtype=np.float32).reshape(5, 2) + 1)
    exchange = AllToAllV(PAIR, [1, 2], [1, 1], 4)
    got = exchange(x).asnumpy()
    assert got.shape == (4, 2) and got[:2].all() and not got[2:].any()
    gradient = ms.grad(lambda x: exchange(x).sum())(x).asnumpy()
    assert gradient.shape == (5, 2) and (gradient[:3] == 1).all() and not gradient[3:].any()
    assert not AllToAllV(PAIR, [0, 0], [0, 0], 1)(x).asnumpy().any()


@pytest.mark.parametrize(("sent", "received", "rows"), [([4, 2], [4, 0], 4), ([1, 2], [1, 4], 4)])
def test_rows_that_are_not_there(sent, received, rows):
    with pytest.raises(ValueError, match="all_to_all_v: 5 rows to send"):
        AllToAllV(PAIR, sent, received, rows)(Tensor(np.zeros((5, 2), np.float32)))
