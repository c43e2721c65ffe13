"""`doctor --measure` on real ranks: collectives are timed and every layout of two ranks can be priced."""

from typing import get_args

from mindmoe.measure.fit import verb_rates
from mindmoe.measure.main import _verbs
from mindmoe.planner.host import Verb


def test_collectives_of_two_ranks_are_timed() -> None:
    rows = _verbs(2, 1)
    assert {row[0] for row in rows} == set(get_args(Verb))
    assert all(row[1] == row[2] == 2 and 0 < row[4] < 30 for row in rows)
    for entry in verb_rates(rows):
        rate = entry["rate"]
        assert rate.us > 0 or rate.gb_s is not None
