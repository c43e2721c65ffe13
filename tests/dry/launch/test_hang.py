"""Which rank a hang is blamed on, for every kind of hang."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mindmoe.host.position import Phase, Position, _Record
from mindmoe.launch.config import LaunchConfig
from mindmoe.launch.hang import HangWatch, diagnose
from mindmoe.launch.ranks import Rank


def at(count: int, *phases: Phase, calls: dict | None = None) -> Position:
    return Position(count=count, since=0.0, phases=phases, calls=calls or {})


def work(name: str) -> Phase:
    return Phase(name=name)


def exchange(name: str, ranks: tuple[int, ...], call: int) -> Phase:
    return Phase(name=name, ranks=ranks, call=call)


STEP = Phase(name="step", number=5)


def test_a_rank_at_work_is_blamed_by_those_that_wait_for_it():
    world = (0, 1, 2, 3)
    waiting = at(40, STEP, exchange("all_reduce over dp", world, 7), calls={world: 7})
    verdict = diagnose({0: waiting, 1: at(39, STEP, work("reading data"), calls={world: 6}), 2: waiting, 3: waiting})
    assert verdict.culprits == (1,)
    assert verdict.reason == ("rank 1 is in step 5, reading data, and ranks 0,2-3 wait for it in all_reduce over dp")


def test_the_end_of_a_chain_is_blamed_not_its_links():
    """3 waits for 2 (pipeline), 2 for 1 (experts), 1 for 0, which reads."""
    verdict = diagnose(
        {
            0: at(90, work("reading data"), calls={(0, 1): 3}),
            1: at(10, exchange("all_to_all_v over ep", (0, 1), 4), calls={(0, 1): 4, (1, 2): 2}),
            2: at(20, exchange("receive", (1, 2), 3), calls={(1, 2): 3, (2, 3): 8}),
            3: at(30, exchange("receive", (2, 3), 9), calls={(2, 3): 9}),
        }
    )
    assert verdict.culprits == (0,)


def test_a_rank_that_has_begun_the_call_is_not_missing_in_it():
    """Rank 0 has left the broadcast that rank 1 is still in, and hangs in a later one that 2 has not come to."""
    ranks = (0, 1, 2)
    verdict = diagnose(
        {
            0: at(12, exchange("broadcast", ranks, 6), calls={ranks: 6}),
            1: at(11, exchange("broadcast", ranks, 5), calls={ranks: 5}),
            2: at(9, work("routing"), calls={ranks: 4}),
        }
    )
    assert verdict.culprits == (2,)


def test_a_rank_in_another_group_is_blamed_if_it_waits_for_nobody():
    verdict = diagnose(
        {
            0: at(5, exchange("all_reduce over tp", (0, 1), 2), calls={(0, 1): 2}),
            1: at(4, exchange("all_reduce over dp", (1,), 1), calls={(0, 1): 1, (1,): 1}),
        }
    )
    assert verdict.culprits == (1,)


def test_ranks_that_wait_for_each_other_are_both_named():
    verdict = diagnose(
        {
            0: at(5, exchange("all_reduce over tp", (0, 1), 2), calls={(0, 1): 2, (0, 1, 2): 1}),
            1: at(5, exchange("barrier over world", (0, 1, 2), 2), calls={(0, 1): 1, (0, 1, 2): 2}),
            2: at(5, exchange("barrier over world", (0, 1, 2), 2), calls={(0, 1, 2): 2}),
        }
    )
    assert verdict.culprits == (0, 1)
    assert "ranks 0-1 wait for each other" in verdict.reason and "barrier over world [0-2], call 2" in verdict.reason


def test_a_stopped_rank_is_blamed_whatever_it_is_in():
    inside = at(40, exchange("all_reduce over dp", (0, 1), 7), calls={(0, 1): 7})
    verdict = diagnose({0: inside, 1: inside}, stopped=[0])
    assert verdict.culprits == (0,)
    assert verdict.reason == "stopped by a signal: rank 0 in all_reduce over dp [0-1], call 7"


def test_the_rank_that_came_least_far_is_blamed_when_a_collective_has_all_its_members():
    inside = exchange("gradients (graph)", (0, 1), 7)
    verdict = diagnose({0: at(44, inside, calls={(0, 1): 7}), 1: at(41, inside, calls={(0, 1): 7})})
    assert verdict.culprits == (1,) and "41 of 44" in verdict.reason


def test_nobody_is_blamed_when_all_are_equally_far():
    inside = at(44, exchange("gradients (graph)", (0, 1), 7), calls={(0, 1): 7})
    verdict = diagnose({0: inside, 1: inside})
    assert verdict.culprits == () and "network" in verdict.reason


def test_a_rank_without_a_record_is_blamed_by_those_that_wait():
    joining = at(2, exchange("joining the cluster", (0, 1), 1), calls={(0, 1): 1})
    assert diagnose({0: joining}).culprits == (1,)
    assert diagnose({}).culprits == ()


@pytest.fixture
def ranks(tmp_path: Path) -> list[Rank]:
    return [Rank(number, tmp_path) for number in range(2)]


@pytest.fixture
def begin() -> Callable[[Rank], _Record]:
    def begin(rank: Rank) -> _Record:
        record = _Record()
        record.open(rank.position_file)
        return record

    return begin


def test_the_watch_waits_for_the_time_of_a_phase_and_no_longer(ranks, begin):
    records = [begin(rank) for rank in ranks]
    for record in records:
        record.write()  # past the start, and in no phase that was entered for the first time
    watch = HangWatch(ranks, LaunchConfig(hang_timeout=30.0, compile_timeout=600.0))
    assert watch.check(1000.0) is None
    for now in (1020.0, 1040.0, 1060.0):  # progress of one rank is enough
        records[0].write()
        assert watch.check(now) is None
    assert watch.check(1089.0) is None
    verdict = watch.check(1091.0)
    assert verdict is not None and verdict.culprits == (1,) and "made progress for 31 s" in verdict.reason


@pytest.mark.parametrize("started", [0, 1, 2])
def test_the_watch_leaves_time_to_start_and_to_compile(ranks, begin, started):
    for rank in ranks[:started]:
        begin(rank)
    watch = HangWatch(ranks, LaunchConfig(hang_timeout=30.0, compile_timeout=600.0))
    assert watch.check(1000.0) is None
    assert watch.check(1599.0) is None
    assert watch.check(1601.0) is not None


def test_a_watch_of_no_seconds_watches_for_nothing(ranks, begin):
    for rank in ranks:
        begin(rank).write()
    watch = HangWatch(ranks, LaunchConfig(hang_timeout=0.0))
    assert watch.check(1000.0) is None and watch.check(1e9) is None
