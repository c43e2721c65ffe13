"""The rank grid against brute force, for sizes that are no powers of two as well."""

from itertools import product

import pytest

from mindmoe.parallel.config import ParallelConfig
from mindmoe.parallel.mesh import Mesh

SHAPES = [
    (dp, tp, pp, cp, ep)
    for dp, tp, pp, cp in product((1, 2, 3), (1, 2), (1, 3), (1, 2))
    for ep in range(1, dp * cp + 1)
    if dp * cp % ep == 0
]


@pytest.mark.parametrize(("dp", "tp", "pp", "cp", "ep"), SHAPES)
def test_groups_partition_the_world(dp, tp, pp, cp, ep):
    mesh = Mesh(dp=dp, tp=tp, pp=pp, cp=cp, ep=ep)
    for axis in ("dp", "tp", "pp", "cp", "ep", "edp", "dp_cp", "world"):
        groups = mesh.groups(axis)
        assert sorted(rank for group in groups for rank in group) == list(range(mesh.world))
        assert {len(group) for group in groups} == {mesh.degree(axis)}
        for group in groups:
            assert [getattr(mesh.coordinates(rank), axis) for rank in group] == (
                list(group) if axis == "world" else list(range(mesh.degree(axis)))
            )


@pytest.mark.parametrize(("dp", "tp", "pp", "cp", "ep"), SHAPES[::5])
def test_rank_inverts_coordinates(dp, tp, pp, cp, ep):
    mesh = Mesh(dp=dp, tp=tp, pp=pp, cp=cp, ep=ep)
    for rank in range(mesh.world):
        at = mesh.coordinates(rank)
        assert mesh.rank(dp=at.dp, tp=at.tp, pp=at.pp, cp=at.cp) == rank


def test_inner_axes_share_a_node():
    mesh = Mesh(dp=16, tp=2, pp=4, ep=4)
    assert all(group[-1] - group[0] < 8 for axis in ("tp", "ep") for group in mesh.groups(axis))


def test_expert_axis_factors_data_and_context():
    mesh = Mesh(dp=3, cp=2, ep=3)
    assert mesh.groups("ep") == [(0, 1, 2), (3, 4, 5)]
    assert mesh.groups("edp") == [(0, 3), (1, 4), (2, 5)]


def test_auto_dp_takes_the_rest():
    assert Mesh.build(ParallelConfig(tp=2, pp=3), 12).dp == 2
