"""Stand-ins give the shapes of the real collectives and refuse what these would refuse."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindmoe.parallel.groups import Group
from mindmoe.parallel.stand_in import StandIn


@pytest.fixture
def on() -> StandIn:
    return StandIn(Group(axis="ep", name="g", ranks=(4, 5, 6, 7), index=2, stand_in=True))


def test_every_other_rank_is_a_copy(on):
    x = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    assert np.array_equal(on.all_reduce(Tensor(x)).asnumpy(), 4 * x)
    assert np.array_equal(on.reduce_scatter(Tensor(x)).asnumpy(), 4 * x[2])
    assert np.array_equal(on.all_to_all(Tensor(x)).asnumpy(), np.stack([x[2]] * 4))
    assert np.array_equal(on.all_gather(Tensor(x)).asnumpy(), np.stack([x] * 4))


def test_gathered_weights_keep_the_own_row_and_differ_elsewhere(on):
    own = np.arange(8, dtype=np.float32)
    rows = on.all_gather(Tensor(own)).asnumpy()
    assert rows.shape == (4, 8)
    assert np.array_equal(rows[2], own)
    assert len({tuple(row) for row in rows}) == 4


def test_rows_arrive_in_the_number_announced(on):
    x = Tensor(np.arange(10, dtype=np.float32).reshape(5, 2))
    assert on.all_to_all_v(x, [1, 2, 2, 0], [3, 0, 2, 4]).shape == (9, 2)
    assert on.all_to_all_v(x[:0], [0, 0, 0, 0], [1, 0, 0, 0]).shape == (1, 2)
    assert on.receive((2, 3), ms.float32, 0).shape == (2, 3)


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ([1, 2, 2], [3, 0, 2, 4]),  # a rank too few
        ([1, 2, 1, 0], [3, 0, 1, 4]),  # not all rows
        ([1, 2, 2, 0], [3, 0, 1, 4]),  # the rank's own rows come back in another number
        ([1, 3, 2, -1], [0, 0, 2, 0]),
    ],
)
def test_counts_that_do_not_fit_are_refused(on, sent, received):
    with pytest.raises(ValueError, match=r"all_to_all_v over ep, rank 6.*needs 4 counts"):
        on.all_to_all_v(Tensor(np.zeros((5, 2), np.float32)), sent, received)


@pytest.mark.parametrize("kind", ["reduce_scatter", "all_to_all"])
def test_rows_for_another_number_of_ranks_are_refused(on, kind):
    with pytest.raises(ValueError, match="one row for each rank"):
        getattr(on, kind)(Tensor(np.zeros((3, 2), np.float32)))


@pytest.mark.parametrize("place", [-1, 2, 4])
def test_messages_to_nobody_are_refused(on, place):
    x = Tensor(np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="another place among the 4"):
        on.send(x, place)
    with pytest.raises(ValueError, match="another place among the 4"):
        on.receive((2,), ms.float32, place)
