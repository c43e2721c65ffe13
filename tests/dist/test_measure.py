"""`doctor --measure` on real ranks: collectives are timed and every layout of two ranks can be priced."""

from typing import get_args

from mindmoe.plan.host import Verb
from mindmoe.proof.measure.fit import verb_rates
from mindmoe.proof.measure.main import _verbs


def test_collectives_of_two_ranks_are_timed() -> None:
    rows = _verbs(2, 1)
    assert {row[0] for row in rows} == set(get_args(Verb))
    assert all(row[1] == row[2] == 2 and 0 < row[4] < 30 for row in rows)
    for entry in verb_rates(rows):
        rate = entry["rate"]
        assert rate.us > 0 or rate.gb_s is not None
