"""Two ranks compute what one rank computes."""

import numpy as np
import pytest


def test_two_ranks_equal_one(cli, trace):
    code, output = cli.run("launch", "--cards", "2", "name=two")
    assert code == 0, output
    code, output = cli.run("train", "name=one", "train.micro_batch_size=4")
    assert code == 0, output
    two, one = np.array(trace("two")), np.array(trace("one"))
    assert np.abs(two[:, 0] - one[:, 0]).max() < 1e-5
    assert two[:, 1:] == pytest.approx(one[:, 1:], rel=1e-3, abs=1e-4)  # norms and loads after Adam's small divisors
