"""Every token has one home, and causal work is even."""

import numpy as np
import pytest

from mindmoe.parallel.mesh import Mesh
from mindmoe.parallel.sequence import context_order, context_positions, token_positions


@pytest.mark.parametrize(("cp", "tp"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 1), (4, 3)])
def test_tokens_are_spread_once(cp, tp):
    mesh = Mesh(cp=cp, tp=tp)
    held = np.concatenate([token_positions(48, mesh, rank) for rank in range(mesh.world)])
    assert sorted(held) == list(range(48))


@pytest.mark.parametrize("cp", [2, 3, 4])
def test_causal_work_is_even(cp):
    work = {sum(context_positions(24 * cp, cp, index) + 1) for index in range(cp)}
    assert len(work) == 1


@pytest.mark.parametrize("cp", [1, 2, 3])
def test_order_puts_the_parts_together_again(cp):
    laid = np.concatenate([context_positions(12, cp, index) for index in range(cp)])
    assert (laid[context_order(12, cp)] == np.arange(12)).all()
