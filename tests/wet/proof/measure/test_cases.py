"""What `doctor --measure` times runs, is counted, and covers every op that the planner asks for."""

from typing import Any, get_args

import numpy as np
import pytest

from mindmoe.ops.cpu.pack import load
from mindmoe.plan.host import OpName
from mindmoe.proof.measure import kernels
from mindmoe.proof.measure.composites import composites

CASES = (kernels.matrix_cases, kernels.attention_cases, kernels.vector_cases)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_every_op_is_timed_in_both_directions(precision: Any) -> None:
    seen = set()
    for cases in CASES:
        for op, direction, count, run in cases(precision):
            assert count.flops >= 0 and count.moved >= 0 and count.flops + count.moved > 0
            kernels.read(run())
            seen.add((op, direction))
    for op, counts, function, args, sens in composites(precision):
        assert counts[0].moved > 0
        assert function(*args).shape == sens.shape
        seen |= {(op, "forward"), (op, "backward")}
    assert seen == {(op, direction) for op in get_args(OpName) for direction in ("forward", "backward")}


def test_more_threads_help_and_are_given_back() -> None:
    pack = load()
    before = pack.threads
    try:
        assert 0 < kernels.scaling(pack, 1) <= 1.0
    finally:
        pack.set_threads(before)


def test_the_median_of_several_calls_counts() -> None:
    clock = iter(np.cumsum([0.0, 0.5, 0.0, 5.0, 0.0, 1.0, 0.0, 2.0])).__next__  # the first only tells how long it takes
    assert kernels.typical(lambda: None, clock, budget=0.0) == 2.0
