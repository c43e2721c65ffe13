"""All ranks agree under every kind of layout, and every injected fault is found and named."""

import time
from dataclasses import replace

import pytest

from mindmoe.config.load import load_config
from mindmoe.config.run import resolve
from mindmoe.parallel.ledger import Call
from mindmoe.parallel.mesh import Mesh
from mindmoe.plan.calls.agree import agree
from mindmoe.plan.calls.program import StepProgram

LAYOUTS = [
    "dp4,zero1",
    "dp2,tp2,zero3",
    "tp2,cp2,ring,full",
    "dp2,cp2,ep4,ulysses",
    "dp4,ep4,two_hop,node_size2",
    "dp2,tp2,ep2,capacity",
    "pp2,dp2,ep2,zero2",
    "pp4,zb_h1",
    "pp2,tp2,interleaved,chunks2",
    "pp2,dp2,zero3,gpipe,full",
]


def programs_of(laid, layout: str, *words: str) -> list[list[Call]]:
    config, mesh = laid(layout, *words)
    return [StepProgram(config, mesh, rank).calls() for rank in range(mesh.world)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rendezvous", [False, True])
def test_the_ranks_of_a_layout_agree(laid, layout, rendezvous):
    programs = programs_of(laid, layout)
    found = agree(programs, rendezvous)
    assert not found.problems
    assert found.calls == sum(map(len, programs))


def place_of(program: list[Call], kind: str, axis: str) -> int:
    return next(place for place, call in enumerate(program) if (call.kind, call.axis) == (kind, axis))


def test_two_collectives_in_another_order_on_one_rank_are_found(laid):
    programs = programs_of(laid, "dp2,tp2,ep2")
    own = programs[2]
    at = next(
        place
        for place in range(len(own) - 1)
        if own[place].ranks == own[place + 1].ranks and own[place] != own[place + 1]
    )
    own[at], own[at + 1] = own[at + 1], own[at]
    (problem,) = agree(programs).problems
    assert "rank 2 at its call" in problem and "meets rank" in problem


def test_an_order_that_closes_a_circle_of_two_groups_is_a_deadlock(laid):
    """Swapped between groups no two ranks of a group differ, yet nobody can go on."""
    tp, dp = (0, 1), (0, 2)
    programs = [
        [Call("all_reduce", "tp", tp, (4,)), Call("all_reduce", "dp", dp, (4,))],
        [Call("all_reduce", "dp", (1, 3), (4,)), Call("all_reduce", "tp", tp, (4,))],
        [Call("all_reduce", "dp", dp, (4,)), Call("all_reduce", "tp", (2, 3), (4,))],
        [Call("all_reduce", "tp", (2, 3), (4,)), Call("all_reduce", "dp", (1, 3), (4,))],
    ]
    (problem,) = agree(programs).problems
    assert problem.startswith("deadlock: ranks 0-3 wait forever")
    assert "rank 0 at its call 1" in problem and "waits for rank 1 at its call 1" in problem


def test_a_receive_that_is_missing_is_found(laid):
    programs = programs_of(laid, "pp2,dp2")
    del programs[2][place_of(programs[2], "receive", "pp")]
    assert any("rank 2 never receives 1 of what rank 0 sends it" in text for text in agree(programs).problems)
    assert agree(programs, rendezvous=True).problems[0].startswith("deadlock")


def test_a_send_that_is_missing_is_found(laid):
    programs = programs_of(laid, "pp2,dp2")
    del programs[0][place_of(programs[0], "send", "pp")]
    (problem,) = agree(programs).problems
    assert problem.startswith("deadlock") and "receive from rank 0" in problem


@pytest.mark.parametrize(
    ("layout", "kind", "axis"),
    [("tp2,pp2", "all_gather", "tp"), ("pp2,dp2", "receive", "pp"), ("dp4", "all_reduce", "world")],
)
@pytest.mark.parametrize("change", ["shape", "dtype"])
def test_another_shape_or_type_is_found(laid, layout, kind, axis, change):
    programs = programs_of(laid, layout)
    at = place_of(programs[3], kind, axis)
    call = programs[3][at]
    wrong = {"shape": (*call.shape[:-1], call.shape[-1] + 1), "dtype": "BFloat16"}[change]
    programs[3][at] = replace(call, **{change: wrong})
    problems = agree(programs).problems
    assert problems and f"rank 3 at its call {at + 1}" in problems[0]


def test_a_rank_that_calls_in_a_group_of_others_is_found(laid):
    programs = programs_of(laid, "dp2,tp2")
    at = place_of(programs[3], "all_gather", "tp")
    programs[3][at] = replace(programs[3][at], ranks=(0, 1))
    (problem,) = agree(programs).problems
    assert "no member" in problem or problem.startswith("deadlock")


def test_sends_before_receives_wait_for_each_other_only_on_a_transport_that_keeps_nothing():
    send = [Call("send", "pp", (0, 1), (4,), peer=1 - rank) for rank in (0, 1)]
    take = [Call("receive", "pp", (0, 1), (4,), peer=1 - rank) for rank in (0, 1)]
    programs = [[send[0], take[0]], [send[1], take[1]]]
    assert not agree(programs).problems
    assert agree(programs, rendezvous=True).problems[0].startswith("deadlock: ranks 0-1")


@pytest.mark.slow
def test_512_ranks_of_gpt_oss_120b_agree_within_a_minute(root):
    config = resolve(load_config(root / "configs" / "gpt-oss-120b.yaml", []), 512)
    mesh = Mesh.build(config.parallel, 512)
    started = time.process_time()
    programs = [StepProgram(config, mesh, rank).calls() for rank in range(512)]
    found = agree(programs, rendezvous=True)
    assert not found.problems
    assert time.process_time() - started < 60
    page = " ".join((root / "docs" / "cluster.md").read_text("utf-8").split())
    assert f"512 ranks of gpt-oss-120b make {found.calls:,} calls a step" in page
