"""Which failures are tried again, how often and how late."""

import pytest

from mindmoe.launch.config import LaunchConfig
from mindmoe.launch.restart import Restarts


def test_it_waits_longer_each_time_and_gives_up_without_progress():
    restarts = Restarts(LaunchConfig(restarts=3, backoff=10.0), best_step=20)
    assert [restarts.again(1, 20)[0] for _ in range(4)] == [10.0, 20.0, 40.0, None]
    assert "3 restarts" in restarts.again(1, 20)[1] and "step 20" in restarts.again(1, 20)[1]


def test_a_newer_checkpoint_is_progress():
    restarts = Restarts(LaunchConfig(restarts=2, backoff=10.0), best_step=20)
    waits = [restarts.again(1, step)[0] for step in (20, 20, 30, 30, 30)]
    assert waits == [10.0, 20.0, 10.0, 20.0, None]


def test_the_wait_has_a_bound():
    restarts = Restarts(LaunchConfig(restarts=100, backoff=10.0))
    assert max(restarts.again(1, 0)[0] for _ in range(100)) == 600.0


@pytest.mark.parametrize("code", [0, 2, 3, 130, 143])
def test_what_comes_again_or_was_asked_for_is_final(code):
    wait, why = Restarts(LaunchConfig(restarts=5)).again(code, 1000)
    assert wait is None and why


def test_no_restart_is_the_default():
    assert Restarts(LaunchConfig()).again(1, 0)[0] is None
