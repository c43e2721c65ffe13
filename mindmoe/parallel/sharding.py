"""Which part of a parameter a rank holds, and who else holds the same part: one table from logical to mesh axes.

Everything that depends on the layout of a parameter is derived here: initialisation, over which ranks its gradient is
summed, how ZeRO cuts it further, and what a checkpoint writes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from mindmoe.host.errors import UserError
from mindmoe.models.gpt_oss.parameters import Axis, ParamSpec
from mindmoe.parallel.box import Box
from mindmoe.parallel.mesh import Coordinates, Mesh, MeshAxis

_BUCKET = 1 << 22  # elements per all-reduce: 16 MB of fp32, enough to hide the latency of a call
_ALONE = 1 << 20  # elements from which a tensor travels alone: packing it would copy more than a call costs
MESH_AXIS: dict[str, MeshAxis] = {
    "vocab": "tp",
    "heads": "tp",
    "kv_heads": "tp",
    "ffn": "tp",
    "expert": "ep",
    "expert_ffn": "etp",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where a parameter lies, as seen from one rank that holds it.

    Attributes:
        box: what this rank computes with.
        replicas: the ranks that compute with the same box, this one among them, ascending: its gradient is summed over
            them.
        index: place of this rank among them.
        zero: the stage of ZeRO that spreads it over its replicas; 0 where nothing is spread: it is not trained, or is
            on one rank only.
    """

    box: Box
    replicas: tuple[int, ...]
    index: int
    zero: int

    @classmethod
    def of(cls, spec: ParamSpec, mesh: Mesh, rank: int, stages: tuple[int, ...] = (0,), zero: int = 0) -> "Placement":
        """Where `spec` lies.

        Args:
            spec: the parameter.
            mesh: the rank grid.
            rank: one that holds it.
            stages: pipeline stages that hold it; two for tied embeddings.
            zero: stage of ZeRO of the run.

        Raises:
            UserError: a dimension cannot be split by its degree.
        """
        box = _box(spec, mesh, mesh.places[rank])
        ranks = _replicas(spec.shape, spec.axes, spec.heads, mesh, stages)[rank]
        return cls(
            box=box,
            replicas=ranks,
            index=ranks.index(rank),
            zero=zero if spec.trainable and len(ranks) > 1 else 0,
        )

    @property
    def part(self) -> Box:
        """What this rank updates of the box: its part under ZeRO, which may be empty, else all of it."""
        return zero_part(self.box, len(self.replicas), self.index) if self.zero else self.box

    @property
    def kept(self) -> Box:
        """What the model keeps of the box between steps: under ZeRO 3 the part."""
        return self.part if self.zero == 3 else self.box


def _box(spec: ParamSpec, mesh: Mesh, place: Coordinates) -> Box:
    """The box of `spec` on a rank; with fewer key-value heads than tensor ranks, neighbours share a head."""
    offset, shape = [], []
    for size, axis in zip(spec.shape, spec.axes, strict=True):
        mesh_axis = MESH_AXIS[axis] if axis else None
        degree = mesh.degree(mesh_axis) if mesh_axis else 1
        at = getattr(place, mesh_axis) if mesh_axis else 0
        # tp / heads neighbours hold the same head, and so become replicas, whose gradients are summed
        if axis == "kv_heads" and spec.heads and degree > spec.heads and degree % spec.heads == 0:
            at, degree = at * spec.heads // degree, spec.heads
        if size % degree:
            raise UserError(
                f"{spec.name}: dimension {axis}={size} must be a multiple of {mesh_axis}={degree}",
                f"lower parallel.{mesh_axis}",
            )
        shape.append(size // degree)
        offset.append(at * (size // degree))
    return Box(tuple(offset), tuple(shape))


def replica_groups(spec: ParamSpec, mesh: Mesh, stages: tuple[int, ...]) -> set[tuple[int, ...]]:
    """The groups of ranks that hold the same box, all of them."""
    return set(_replicas(spec.shape, spec.axes, spec.heads, mesh, stages).values())


# By what the answer depends on, not by spec: the same weight of a stage's layers is one entry.
@lru_cache(maxsize=1024)
def _replicas(
    shape: tuple[int, ...], axes: tuple[Axis, ...], heads: int, mesh: Mesh, stages: tuple[int, ...]
) -> dict[int, tuple[int, ...]]:
    spec = ParamSpec(name="", shape=shape, axes=axes, heads=heads)
    members: dict[tuple[int, ...], list[int]] = {}
    for place in mesh.places:
        if place.pp in stages:
            # boxes of a parameter are of one size, so the offset tells them apart
            members.setdefault(_box(spec, mesh, place).offset, []).append(place.world)
    return {rank: tuple(group) for group in members.values() for rank in group}


def zero_part(box: Box, count: int, index: int) -> Box:
    """Part `index` of `count` parts of a box, as ZeRO spreads it over replicas.

    The cut runs along `zero_dim`, in parts of equal size except for the last ones, which may be short or empty.
    """
    dim = zero_dim(box.shape, count)
    size = box.shape[dim]
    # rounded up, so what is short is at the end, where `zero_depth` pads it
    depth = -(-size // count)
    start = min(size, depth * index)
    return box.cut(dim, start, min(size, start + depth) - start)


def zero_dim(shape: tuple[int, ...], count: int) -> int:
    """The dimension that ZeRO cuts into `count` parts."""
    # the first that needs no padding: the further out the cut, the longer the contiguous pieces
    even = [dim for dim, size in enumerate(shape) if size % count == 0]
    return even[0] if even else max(range(len(shape)), key=lambda dim: shape[dim])


def zero_depth(shape: tuple[int, ...], count: int) -> int:
    """What each of `count` parts has along `zero_dim`, padded to equal sizes."""
    return -(-shape[zero_dim(shape, count)] // count)


def zero_columns(shape: tuple[int, ...], count: int) -> int:
    """Elements of each of `count` parts, padded to equal sizes."""
    # everything but the cut dimension, times what a part has of that
    return prod(shape) // shape[zero_dim(shape, count)] * zero_depth(shape, count)


def buckets(sizes: list[int], limit: int = _BUCKET, alone: int = _ALONE) -> list[list[int]]:
    """Indices of tensors grouped so that a bucket holds one tensor, or smaller ones than `alone`, in at most `limit`.

    Args:
        sizes: [elements].
        limit: [elements].
        alone: [elements].
    """
    result: list[list[int]] = []
    small: list[int] = []
    held = 0
    for index, size in enumerate(sizes):
        if size >= min(alone, limit):
            result.append([index])
            continue
        # `small` stays open across large tensors: those in between have buckets of their own
        if not small or held + size > limit:
            small, held = [], 0
            result.append(small)
        small.append(index)
        held += size
    return result


def ordered_groups(groups: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Distinct groups of more than one rank, in the order in which every rank must create them."""
    return sorted({group for group in groups if len(group) > 1}, key=lambda group: (len(group), group))
