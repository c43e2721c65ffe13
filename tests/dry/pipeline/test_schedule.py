"""Schedules: complete, free of deadlock, matched transfers, and the bubble that their papers state."""

from collections import Counter

import pytest

from mindmoe.pipeline.schedule import (
    Action,
    Schedule,
    Transfer,
    build_schedule,
    count_chunks,
    peak_in_flight,
    receive_before,
    simulate,
    stage_steps,
)

SIZES = [("gpipe", p, m, 1) for p in (1, 2, 3, 4, 8) for m in (1, 2, 5, 16)]
SIZES += [("1f1b", p, m, 1) for p in (1, 2, 3, 4, 8, 16) for m in (1, 2, 3, 7, 16, 33)]
SIZES += [("zb_h1", p, m, 1) for p in (1, 2, 3, 4, 8, 16) for m in (1, 2, 3, 7, 16, 33)]
SIZES += [("interleaved", p, p * g, v) for p in (1, 2, 3, 4, 8) for g in (1, 2, 3, 5) for v in (1, 2, 3, 4)]


def uniform_durations(stages, chunks, forward, backward, weight=0.0):
    """The same times on every stage; a stage's whole work is `chunks` times these."""
    return [[{"F": forward, "B": backward, "W": weight}] * chunks for _ in range(stages)]


@pytest.mark.parametrize(("name", "stages", "microbatches", "chunks"), SIZES)
def test_every_list_is_complete_and_runs_to_its_end(name, stages, microbatches, chunks):
    schedule = build_schedule(name, stages, microbatches, chunks)
    kinds = "FBW" if name == "zb_h1" else "FB"
    expected = Counter(Action(k, i, c) for k in kinds for i in range(microbatches) for c in range(chunks))
    assert all(Counter(actions) == expected for actions in schedule)
    timeline = simulate(schedule, uniform_durations(stages, chunks, 1.0, 2.0, 1.0))
    assert timeline.makespan >= max(timeline.busy)


@pytest.mark.parametrize(("name", "stages", "microbatches", "chunks"), SIZES)
def test_messages_meet_on_a_transport_that_keeps_none(name, stages, microbatches, chunks):
    """Both ends of a message must stand at it at once, after it was made and before it is used."""
    schedule = build_schedule(name, stages, microbatches, chunks)
    steps = stage_steps(schedule)
    assert [tuple(step for step in of if isinstance(step, Action)) for of in steps] == list(schedule)
    done: list[list[Action | Transfer]] = [[] for _ in steps]
    moved = True
    while moved:
        moved = False
        for stage, of in enumerate(steps):
            while len(done[stage]) < len(of):
                step = of[len(done[stage])]
                if isinstance(step, Transfer):
                    ends = step.source, step.target
                    if any(len(done[end]) == len(steps[end]) or steps[end][len(done[end])] != step for end in ends):
                        break
                    assert step.action in done[step.source]
                    for end in ends:
                        done[end].append(step)
                else:
                    needed = receive_before(step, stage, stages, chunks)
                    assert needed is None or needed in done[stage]
                    done[stage].append(step)
                moved = True
    assert done == steps


@pytest.mark.parametrize("stages", [1, 2, 4, 8])
@pytest.mark.parametrize("rounds", [1, 2, 4, 8])
def test_bubble_of_uniform_stages_is_the_closed_form(stages, rounds):
    """(p-1)(f+b) idle time for GPipe and 1F1B, a chunks-th of it when interleaved (arXiv 2104.04473)."""
    microbatches, forward, backward = stages * rounds, 1.0, 2.0
    work = microbatches * (forward + backward)
    for name in ("gpipe", "1f1b"):
        timeline = simulate(build_schedule(name, stages, microbatches), uniform_durations(stages, 1, forward, backward))
        assert timeline.makespan == pytest.approx(work + (stages - 1) * (forward + backward))
    for chunks in (2, 3, 4):
        times = uniform_durations(stages, chunks, forward / chunks, backward / chunks)
        timeline = simulate(build_schedule("interleaved", stages, microbatches, chunks), times)
        assert timeline.makespan == pytest.approx(work + (stages - 1) * (forward + backward) / chunks)
        assert timeline.bubble == pytest.approx(1 - work / timeline.makespan)


@pytest.mark.parametrize("stages", [2, 4, 8])
def test_zero_bubble_leaves_a_third_of_the_bubble_at_the_same_memory(stages):
    """ZB-H1: (p-1)(f+b-w) idle time at the activation memory of 1F1B's first stage (arXiv 2401.10241, table 1)."""
    microbatches = 4 * stages
    schedule = build_schedule("zb_h1", stages, microbatches)
    timeline = simulate(schedule, uniform_durations(stages, 1, 1.0, 1.0, 1.0))
    assert timeline.makespan == pytest.approx(3 * microbatches + (stages - 1))
    assert max(map(peak_in_flight, schedule)) <= stages


def test_peak_in_flight_is_the_known_one():
    assert [peak_in_flight(a) for a in build_schedule("1f1b", 4, 8)] == [4, 3, 2, 1]
    assert [peak_in_flight(a) for a in build_schedule("gpipe", 4, 8)] == [8] * 4
    assert [peak_in_flight(a) for a in build_schedule("interleaved", 4, 8, 2)] == [11, 9, 7, 5]


def test_a_wrong_list_is_reported_as_a_deadlock():
    broken: Schedule = ((Action("F", 0), Action("B", 0)), (Action("B", 0), Action("F", 0)))
    with pytest.raises(ValueError, match=r"deadlocks.*kind='B'"):
        simulate(broken, uniform_durations(2, 1, 1.0, 1.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("1f1b", 4, 8, 2), "one chunk"),
        (("interleaved", 4, 6, 2), "multiple of stages"),
        (("gpipe", 0, 1), "at least 1"),
    ],
)
def test_illegal_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_schedule(*arguments)


def test_chunks_are_read_from_the_lists():
    assert count_chunks(build_schedule("interleaved", 2, 4, 3)) == 3
