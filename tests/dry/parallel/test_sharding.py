"""Boxes, their replicas and ZeRO's parts, against brute force over all elements."""

from itertools import product

import numpy as np
import pytest

from mindmoe.models.gpt_oss.parameters import ParamSpec
from mindmoe.parallel.box import Box
from mindmoe.parallel.mesh import Mesh
from mindmoe.parallel.sharding import Placement, buckets, replica_groups, zero_part

SPECS = [
    ParamSpec(name="dense", shape=(5, 3), axes=(None, None)),
    ParamSpec(name="q", shape=(24, 6), axes=("heads", None), heads=12),
    ParamSpec(name="k", shape=(8, 6), axes=("kv_heads", None), heads=2),
    ParamSpec(name="up", shape=(12, 6, 24), axes=("expert", None, "expert_ffn")),
    ParamSpec(name="bias", shape=(12, 6), axes=("expert", None)),
]
MESHES = [
    Mesh(dp=dp, tp=tp, cp=cp, pp=pp, ep=ep, etp=etp)
    for dp, tp, cp, pp in product((1, 2, 3), (1, 2, 4), (1, 2), (1, 2))
    for ep, etp in product((1, 2, 3, 4, 6), (1, 2, 4))
    if dp * tp * cp % (ep * etp) == 0 and etp in (1, tp) and not (etp == tp and dp * cp % ep)
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_boxes_tile_and_replicas_are_the_ranks_with_the_same_box(spec):
    for mesh in MESHES:
        stages = tuple(range(mesh.pp))[:1]
        ranks = [place.world for place in mesh.places if place.pp == 0]
        placed = {rank: Placement.of(spec, mesh, rank, stages) for rank in ranks}
        boxes = {rank: placement.box for rank, placement in placed.items()}
        seen = np.zeros(spec.shape, int)
        for group in replica_groups(spec, mesh, stages):
            assert len({boxes[rank] for rank in group}) == 1
            seen[boxes[group[0]].index] += 1
        assert (seen == 1).all(), mesh
        for rank in ranks:
            same = tuple(other for other in ranks if boxes[other] == boxes[rank])
            assert placed[rank].replicas == same and same[placed[rank].index] == rank, mesh


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_zero_parts_tile_a_box(spec, count):
    box = Box.whole(spec.shape)
    seen = np.zeros(spec.shape, int)
    for index in range(count):
        seen[zero_part(box, count, index).index] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_what_replicas_update_tiles_their_box_under_zero(zero):
    for spec in (*SPECS, ParamSpec(name="one", shape=(1,), axes=(None,))):
        placed = [Placement.of(spec, Mesh(dp=3), rank, zero=zero) for rank in range(3)]
        assert {placement.zero for placement in placed} == {zero}
        seen, kept = np.zeros(spec.shape, int), np.zeros(spec.shape, int)
        for placement in placed:
            seen[placement.part.index] += 1
            kept[placement.kept.index] += 1
        assert (seen == (1 if zero else 3)).all() and (kept == (1 if zero == 3 else 3)).all()


def test_what_is_alone_or_is_not_trained_is_never_spread():
    frozen = ParamSpec(name="bias", shape=(8,), axes=(None,), trainable=False)
    assert Placement.of(frozen, Mesh(dp=2), 0, zero=3).kept == Box.whole((8,))
    assert Placement.of(SPECS[0], Mesh(), 0, zero=3).zero == 0


def test_key_heads_are_shared_by_neighbours_and_never_cut():
    mesh = Mesh(tp=4)
    offsets = [Placement.of(SPECS[2], mesh, rank).box.offset[0] for rank in range(4)]
    assert offsets == [0, 0, 4, 4]
    assert Placement.of(SPECS[2], mesh, 1).replicas == (0, 1)


def test_buckets_hold_small_tensors_together_and_large_ones_alone():
    assert buckets([10, 5, 3, 100, 2, 7, 8], limit=12, alone=50) == [[0], [1, 2, 4], [3], [5], [6]]
    assert buckets([10, 20], limit=5) == [[0], [1]]
    assert buckets([]) == []
    sizes = [size % 37 + 1 for size in range(0, 4000, 13)]
    found = buckets(sizes, limit=100, alone=30)
    assert sorted(index for bucket in found for index in bucket) == list(range(len(sizes)))
    for bucket in found:
        assert len(bucket) == 1 or sum(sizes[index] for index in bucket) <= 100
        assert len(bucket) == 1 or max(sizes[index] for index in bucket) < 30
