"""Initial values: any box of a parameter equals that box of the whole, whatever the layout."""

import numpy as np
import pytest

from mindmoe.host.errors import UserError
from mindmoe.models.gpt_oss.parameters import ParamSpec
from mindmoe.parallel.box import Box
from mindmoe.parallel.init import initial_value
from mindmoe.parallel.mesh import Mesh
from mindmoe.parallel.sharding import Placement

EXPERT = ParamSpec(name="experts.w", shape=(6, 10, 8), axes=("expert", None, "expert_ffn"))
DENSE = ParamSpec(name="q.weight", shape=(12, 10), axes=("heads", None))


def whole(spec: ParamSpec, seed: int = 1) -> np.ndarray:
    return initial_value(spec, Box.whole(spec.shape), seed, 0.02)


@pytest.mark.parametrize(
    "mesh", [Mesh(dp=3, ep=3), Mesh(tp=2, etp=2), Mesh(dp=2, tp=4, ep=2, etp=4), Mesh(dp=6, ep=6, tp=2)]
)
@pytest.mark.parametrize("spec", [EXPERT, DENSE])
def test_shards_are_boxes_of_the_whole(mesh, spec):
    full, covered = whole(spec), np.zeros(spec.shape, int)
    for rank in range(mesh.world):
        box = Placement.of(spec, mesh, rank).box
        np.testing.assert_array_equal(initial_value(spec, box, 1, 0.02), full[box.index])
        covered[box.index] += 1
    assert set(covered.ravel()) == {len(Placement.of(spec, mesh, 0).replicas)}


def test_long_parameters_are_drawn_in_chunks_without_a_seam(monkeypatch):
    spec = ParamSpec(name="w", shape=(37, 11), axes=(None, None))
    full = whole(spec)
    monkeypatch.setattr("mindmoe.parallel.init._CHUNK", 13)
    np.testing.assert_array_equal(whole(spec), full)


def test_distribution():
    values = whole(ParamSpec(name="w", shape=(400, 500), axes=(None, None)))
    assert abs(values.mean()) < 4 * 0.02 / np.sqrt(values.size)
    assert values.std() == pytest.approx(0.02, rel=0.01)
    assert 3.5 < np.abs(values).max() / 0.02 < 6.0  # a normal tail: P(|z| > 3.5) * 200k = 93, P(|z| > 6) * 200k < 1e-3


def test_seed_and_name_decide():
    other = ParamSpec(name="v.weight", shape=DENSE.shape, axes=DENSE.axes)
    assert not np.array_equal(whole(DENSE, 1), whole(DENSE, 2))
    assert not np.array_equal(whole(DENSE), whole(other))
    np.testing.assert_array_equal(whole(DENSE), whole(DENSE))


def test_a_split_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"expert=6 must be a multiple of ep=4"):
        Placement.of(EXPERT, Mesh(dp=4, ep=4), 0)
