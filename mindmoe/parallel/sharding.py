"""Which part of a parameter a rank holds: the one table from logical axes to mesh axes."""

from dataclasses import dataclass

from mindmoe.errors import UserError
from mindmoe.model.shapes import ParamSpec
from mindmoe.parallel.mesh import Mesh, MeshAxis

MESH_AXIS: dict[str, MeshAxis] = {
    "vocab": "tp",
    "heads": "tp",
    "kv_heads": "tp",
    "ffn": "tp",
    "expert": "ep",
    "expert_ffn": "tp",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """The box of a parameter that one rank holds.

    Attributes:
        offset: first global index of each dimension.
        shape: local shape.
    """

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def index(self) -> tuple[slice, ...]:
        """The box as an index into the whole array."""
        return tuple(slice(start, start + size) for start, size in zip(self.offset, self.shape, strict=True))


def local_shard(spec: ParamSpec, mesh: Mesh, rank: int) -> Shard:
    """The box of `spec` on `rank`.

    Raises:
        UserError: a dimension is not a multiple of the degree that splits it.
    """
    place = mesh.coordinates(rank)
    offset, shape = [], []
    for size, axis in zip(spec.shape, spec.axes, strict=True):
        mesh_axis = MESH_AXIS[axis] if axis else None
        degree = mesh.degree(mesh_axis) if mesh_axis else 1
        if size % degree:
            raise UserError(
                f"{spec.name}: dimension {axis}={size} must be a multiple of {mesh_axis}={degree}",
                f"lower parallel.{mesh_axis}",
            )
        shape.append(size // degree)
        offset.append(getattr(place, mesh_axis) * (size // degree) if mesh_axis else 0)
    return Shard(offset=tuple(offset), shape=tuple(shape))


def replica_axes(spec: ParamSpec) -> MeshAxis:
    """The axis over which a parameter's gradient is summed: expert weights over edp, all others over dp x cp."""
    return "edp" if "expert" in spec.axes else "dp_cp"
