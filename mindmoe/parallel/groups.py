"""Process groups: the mesh's lists of ranks turned into communicators, created in the same order on every rank."""

from dataclasses import dataclass

import mindspore as ms

from mindmoe.parallel.mesh import Mesh, MeshAxis

_WORLD = {"cpu": "mccl_world_group", "ascend": "hccl_world_group"}
_BACKEND = {"cpu": "mccl", "ascend": "hccl"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A communicator and this rank's place in it. In a group of one every collective is the identity.

    Attributes:
        axis: mesh axis the group runs along.
        name: MindSpore's name of the communicator, empty for a group of one.
        ranks: global ranks in order of their place.
        index: this rank's place.
    """

    axis: MeshAxis
    name: str
    ranks: tuple[int, ...]
    index: int

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)


def alone(axis: MeshAxis = "world", rank: int = 0) -> Group:
    """The group of one rank."""
    return Group(axis=axis, name="", ranks=(rank,), index=0)


def connect(device: str) -> None:
    """Joins the cluster that msrun started."""
    ms.communication.init(_BACKEND[device])


def create_groups(mesh: Mesh, rank: int, device: str) -> dict[MeshAxis, Group]:
    """The groups of `rank` on every axis; communicators are shared between axes with equal ranks."""
    names: dict[tuple[int, ...], str] = {tuple(range(mesh.world)): _WORLD[device]}
    groups: dict[MeshAxis, Group] = {}
    axes: tuple[MeshAxis, ...] = ("world", "tp", "cp", "dp", "pp", "ep", "edp", "dp_cp")
    for axis in axes:
        ranks = mesh.group(axis, rank)
        if len(ranks) == 1:
            groups[axis] = alone(axis, rank)
            continue
        if ranks not in names:
            names[ranks] = "mindmoe_" + "_".join(map(str, ranks))
            ms.communication.create_group(names[ranks], list(ranks))
        groups[axis] = Group(axis=axis, name=names[ranks], ranks=ranks, index=ranks.index(rank))
    return groups
