"""Who updates what, under every stage of ZeRO: all ranks of a group call alike, and each element is updated once."""

import numpy as np
import pytest

from mindmoe.models.gpt_oss.parameters import ParamSpec
from mindmoe.optim.owned import Owned
from mindmoe.optim.reduction import Reduction
from mindmoe.parallel.groups import Groups
from mindmoe.parallel.mesh import Mesh
from mindmoe.parallel.sharding import Placement
from mindmoe.parallel.unit import Unit

RANKS = 3
# One element, which ZeRO leaves to the first rank whole; a padded part; an even one; and experts, each on one rank.
SPECS = [
    ParamSpec(name="one", shape=(1,), axes=(None,)),
    ParamSpec(name="padded", shape=(5, 2), axes=(None, None), decay=True),
    ParamSpec(name="even", shape=(4, 6), axes=(None, None)),
    ParamSpec(name="experts", shape=(3, 2), axes=("expert", None)),
]


def owned_by(rank: int, zero: int) -> tuple[Unit, Reduction, Owned]:
    mesh = Mesh(dp=RANKS, ep=RANKS)
    groups = Groups(mesh, rank, "cpu", stand_in=True)
    unit = Unit([(spec, Placement.of(spec, mesh, rank, zero=zero)) for spec in SPECS], groups, seed=1, std=0.1)
    reduction = Reduction(unit.tensors, groups)
    return unit, reduction, Owned(unit.tensors, reduction)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_every_rank_takes_part_in_the_same_sums(zero):
    called = []
    for rank in range(RANKS):
        unit, reduction, _ = owned_by(rank, zero)
        called.append(
            [(group.ranks, [unit.tensors[at].spec.name for at in places]) for group, places in reduction.groups.items()]
        )
    wanted = [] if zero == 3 else [((0, 1, 2), ["one", "padded", "even"])]
    assert called == [wanted] * RANKS


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_each_element_is_updated_and_counted_once(zero):
    updated = {spec.name: np.zeros(spec.shape, int) for spec in SPECS}
    counted = {spec.name: np.zeros(spec.shape, int) for spec in SPECS}
    for rank in range(RANKS):
        _, _, owned = owned_by(rank, zero)
        for place, tensor in enumerate(owned.tensors):
            assert tensor.param.shape == tensor.box.shape == tensor.placement.part.shape
            updated[tensor.spec.name][tensor.box.index] += 1
            counted[tensor.spec.name][tensor.box.index] += place in owned.counted
    for spec in SPECS:
        copies = 1 if zero or spec.name == "experts" else RANKS
        assert (updated[spec.name] == copies).all() and (counted[spec.name] == 1).all(), spec.name


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_masters_and_moments_hold_the_values_of_their_part(zero):
    whole = {t.spec.name: t.param.asnumpy() for t in owned_by(0, 0)[0].tensors}
    unit, _, owned = owned_by(1, zero)
    of_model = {id(tensor.param) for tensor in unit.tensors}
    assert [id(t.param) in of_model for t in owned.tensors] == [t.placement.zero not in (1, 2) for t in owned.tensors]
    for tensor in owned.tensors:
        if tensor.spec.name != "experts":
            np.testing.assert_array_equal(tensor.param.asnumpy(), whole[tensor.spec.name][tensor.box.index])
    (moment, *_) = owned.beside([tensor.param for tensor in owned.tensors], "adam_m.")
    first = owned.tensors[0]
    assert (moment.spec.name, moment.box, moment.param) == (f"adam_m.{first.spec.name}", first.box, first.param)
